"""Visual contrastive decoding (VCD; Leng et al., CVPR 2024): what a noised image makes likelier too is taken off."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor

from mfpo.answer.settings import VCDSettings
from mfpo.build.noise import alpha_bar
from mfpo.build.steps import generator
from mfpo.errors import MfpoError
from mfpo.models import encode_questions


def contrast(logits: Tensor, noised: Tensor, *, alpha: float, beta: float) -> Tensor:
    """VCD's score (equations 3 and 4): (1 + alpha) l - alpha l', and -inf where p < beta max p.

    logits, noised: l and l', next to the image and to the noised image, each (batch, vocabulary). As VCD's code does,
    raw logits are contrasted; log-probabilities would give the same distribution.
    """
    cutoff = logits.max(dim=-1, keepdim=True).values + torch.log(torch.tensor(beta))
    return ((1 + alpha) * logits - alpha * noised).masked_fill(logits < cutoff, -torch.inf)


def add_noise(batch: dict[str, Tensor], rngs: Sequence[np.random.Generator], *, step: int, frames: int = 1) -> Tensor:
    """The `pixel_values` of `batch` with diffusion noise: sqrt(abar) x + sqrt(1 - abar) eps, not clipped.

    Each row's noise comes from its own generator. `frames` is how often the processor repeats an image in its patches
    (Qwen-VL); the copies share their noise. Raises MfpoError when it is unclear which pixels are whose.
    """
    pixels = batch["pixel_values"]
    grids = batch.get("image_grid_thw")  # where there are some, pixels are (patches of all images, values)
    sizes = [1] * len(pixels) if grids is None else grids.prod(dim=1).tolist()
    if len(sizes) != len(rngs):
        raise MfpoError(f"vcd: {len(rngs)} questions but {len(sizes)} images in this model's pixels; decode greedily")
    noise = np.concatenate(
        [_noise(rng, (size, *pixels.shape[1:]), frames) for rng, size in zip(rngs, sizes, strict=True)]
    )
    kept = alpha_bar(step)
    noised = kept**0.5 * pixels + (1 - kept) ** 0.5 * torch.from_numpy(noise).to(pixels)
    if pixels.dim() == 5:  # (rows, tiles, ...): rows of fewer tiles are filled up with zeros, by which models know them
        noised[(pixels == 0).flatten(2).all(dim=2)] = 0
    return noised


def _noise(rng: np.random.Generator, shape: tuple[int, ...], frames: int) -> np.ndarray[Any, Any]:
    if frames == 1:
        return rng.standard_normal(shape, dtype=np.float32)
    patches, values = shape  # a patch is (channel, frame, height, width), flattened
    noise = rng.standard_normal((patches, 3, 1, values // (3 * frames)), dtype=np.float32)
    return np.repeat(noise, frames, axis=2).reshape(shape)


class Contrast(LogitsProcessor):  # type: ignore[misc, unused-ignore]
    """Contrasts the first half of a batch, which sees the images, with the second, which sees the noised ones.

    Both halves get the same scores, so that both go on with the same token. With `rngs`, Gumbel noise is added, so that
    the highest score is a sample, from each row's own generator.
    """

    def __init__(self, settings: VCDSettings, rngs: Sequence[np.random.Generator] | None) -> None:
        self.settings = settings
        self.rngs = rngs

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = contrast(*scores.chunk(2), alpha=self.settings.cd_alpha, beta=self.settings.cd_beta)
        if self.rngs is not None:
            gumbel = np.stack([rng.gumbel(size=scores.shape[1]) for rng in self.rngs])
            scores = scores + torch.from_numpy(gumbel).to(scores)
        return scores.repeat(2, 1)


def vcd(
    model: Any,
    processor: Any,
    rows: Sequence[dict[str, Any]],
    images: Sequence[Image.Image],
    settings: VCDSettings,
    max_new_tokens: int,
) -> list[str]:
    """The answers of one batch of questions. None depends on the batch that it is in.

    Image and noised image are two rows of one batch, so that both have their cache, and one pass asks both.
    """
    rngs = [generator(settings.seed, row["question_id"]).spawn(2) for row in rows]
    batch = dict(encode_questions(processor, [row["text"] for row in rows], images))
    frames = getattr(processor.image_processor, "temporal_patch_size", 1)
    noised = add_noise(batch, [noise for noise, _ in rngs], step=settings.noise_step, frames=frames)
    doubled = {name: torch.cat([value, value]) for name, value in batch.items()}
    doubled["pixel_values"] = torch.cat([batch["pixel_values"], noised])
    for name, value in doubled.items():
        doubled[name] = value.to(model.device, model.dtype if value.is_floating_point() else None)
    scores = Contrast(settings, [sampling for _, sampling in rngs] if settings.sample else None)
    output = model.generate(
        **doubled,
        logits_processor=[scores],
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
    )
    answers = output[: len(rows), doubled["input_ids"].shape[1] :]
    return list(processor.batch_decode(answers, skip_special_tokens=True))
