"""How much a model's answer depends on the image: the effect of corrupting the key regions."""

from typing import Any

import datasets
import torch
from torch import Tensor

from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.prefix import shares_prefix
from mfpo.logprobs.sequences import sequence_logps


def image_dependence(
    model: Any, processor: Any, dataset: datasets.Dataset, *, batch_size: int = 16, max_length: int = 2048
) -> float:
    """Mean over the records of log p(y_w | m, t) - log p(y_w | m', t), in nats.

    About 0 means that the model answers from its language prior. `dataset` needs the column `rejected_images`.
    """
    logps = pair_logps(model, processor, dataset, batch_size=batch_size, max_length=max_length)
    return (logps[:, 0] - logps[:, 2]).mean().item()


@torch.inference_mode()
def pair_logps(
    model: Any, processor: Any, dataset: datasets.Dataset, *, batch_size: int = 16, max_length: int = 2048
) -> Tensor:
    """log p of (y_w, m), (y_l, m) and (y_w, m') of each record in nats, (records, 3)."""
    pairs = Pairs(dataset, processor, cells=TEXT_AND_IMAGE, max_length=max_length)
    logps = []
    for start in range(0, len(pairs), batch_size):
        rows = range(start, min(start + batch_size, len(pairs)))
        batch = pairs.collate([pairs[row] for row in rows], shared=shares_prefix(model))
        batch.pop("rows")
        logps.append(sequence_logps(model, batch).view(-1, 3))
    return torch.cat(logps).cpu()
