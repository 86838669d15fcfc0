"""How much a model's answer depends on the image: the effect of noise in the key regions, and of their absence."""

from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mfpo.build.steps import union
from mfpo.images import decode_image
from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.prefix import shares_prefix
from mfpo.logprobs.sequences import collate, encode, pad_id, sequence_logps
from mfpo.probe.inpainting import hide

MAX_LENGTH = 2048
_BATCH = 16


def image_dependence(model: Any, processor: Any, dataset: datasets.Dataset) -> dict[str, float]:
    """Means over the records, in nats; about 0 means that the model answers from its language prior.

    `image_dependence` is log p(y_w | m, t) - log p(y_w | m', t): what `mfpo build` left of the key regions is still
    seen, under the paper's noise nearly all. `image_dependence_inpainted` is the same with m' as m whose key regions
    are filled from around them, so that nothing of them is seen. `dataset` needs `rejected_images` and `regions`.
    """
    logps = pair_logps(model, processor, dataset)
    inpainted = inpainted_logps(model, processor, dataset)
    return {
        "image_dependence": (logps[:, 0] - logps[:, 2]).mean().item(),
        "image_dependence_inpainted": (logps[:, 0] - inpainted).mean().item(),
    }


@torch.inference_mode()
def pair_logps(model: Any, processor: Any, dataset: datasets.Dataset) -> Tensor:
    """log p of (y_w, m), (y_l, m) and (y_w, m') of each record in nats, (records, 3)."""
    pairs = Pairs(dataset, processor, cells=TEXT_AND_IMAGE, max_length=MAX_LENGTH)
    logps = []
    for start in range(0, len(pairs), _BATCH):
        rows = range(start, min(start + _BATCH, len(pairs)))
        batch = pairs.collate([pairs[row] for row in rows], shared=shares_prefix(model))
        batch.pop("rows")
        logps.append(sequence_logps(model, batch).view(-1, 3))
    return torch.cat(logps).cpu()


@torch.inference_mode()
def inpainted_logps(model: Any, processor: Any, dataset: datasets.Dataset) -> Tensor:
    """log p of y_w in nats, given m with its key regions inpainted, (records,)."""
    records = dataset.select_columns(["images", "prompt", "chosen", "regions"]).with_format("arrow")
    logps = []
    for start in range(0, len(records), _BATCH):
        batch = records[start : start + _BATCH].to_pylist()
        rows = [encode(processor, inpainted(r), r["prompt"], [r["chosen"]], max_length=MAX_LENGTH) for r in batch]
        logps.append(sequence_logps(model, collate(rows, pad_id(processor))))
    return torch.cat(logps).cpu()


def inpainted(record: dict[str, Any]) -> list[Image.Image]:
    """The images of a record with its regions inpainted; without any region, as in `mfpo build`, all is gone."""
    images = []
    for number, encoded in enumerate(record["images"]):
        pixels = np.asarray(decode_image(encoded))
        mask = union(record["regions"], number, pixels.shape)
        images.append(Image.fromarray(hide(pixels, mask if record["regions"] else np.ones_like(mask))))
    return images
