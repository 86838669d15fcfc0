"""How much a model's answer rests on the image: what destroying the key regions costs it."""

from typing import Any

import datasets
import torch

from mfpo.align.logprobs import collate, sequence_logps
from mfpo.align.pairs import Pairs


def image_dependence(
    model: Any, processor: Any, dataset: datasets.Dataset, *, batch_size: int = 16, max_length: int = 2048
) -> float:
    """Mean over the records of log p(y_w | m, t) - log p(y_w | m', t), in nats.

    About 0 means that the model answers from its language prior. `dataset` needs the column `rejected_images`.
    """
    pairs = Pairs(dataset, processor, rejected_images=True, max_length=max_length)
    drops = []
    for start in range(0, len(pairs), batch_size):
        records = [pairs[row].prompts for row in range(start, min(start + batch_size, len(pairs)))]
        rows = [prompt.split()[0] for prompts in records for prompt in prompts]
        with torch.inference_mode():
            original, destroyed = sequence_logps(model, collate(rows, pairs.pad_id)).view(-1, 2).T
        drops.append(original - destroyed)
    return torch.cat(drops).mean().item()
