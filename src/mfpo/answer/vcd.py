"""Visual contrastive decoding (VCD; Leng et al., CVPR 2024): subtracts the predictions from a noised image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from mfpo.answer.decoders import decoder
from mfpo.build.settings import STEPS
from mfpo.errors import MfpoError
from mfpo.settings import about

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from mfpo.answer.questions import Question


def contrast(logits: "Tensor", noised: "Tensor", *, alpha: float, beta: float) -> "Tensor":
    """VCD's score (equations 3 and 4): (1 + alpha) l - alpha l', and -inf where p < beta max p.

    logits, noised: l and l', next to the image and to the noised image, each (batch, vocabulary). As VCD's code does,
    raw logits are contrasted; log-probabilities would give the same distribution.
    """
    import torch

    cutoff = logits.max(dim=-1, keepdim=True).values + torch.log(torch.tensor(beta))
    return ((1 + alpha) * logits - alpha * noised).masked_fill(logits < cutoff, -torch.inf)


def add_noise(
    batch: dict[str, "Tensor"], rngs: Sequence[np.random.Generator], sizes: Sequence[int], *, step: int, frames: int = 1
) -> "Tensor":
    """The `pixel_values` of `batch` with diffusion noise: sqrt(abar) x + sqrt(1 - abar) eps, not clipped.

    Each question's noise comes from its own generator, for as many rows of pixels as `sizes` says. `frames` is how
    often the processor repeats an image in its patches (Qwen-VL); the copies share their noise. What fills rows up to
    the largest image or the most tiles stays 0.
    """
    import torch

    from mfpo.build.noise import alpha_bar

    pixels = batch["pixel_values"]
    noise = np.zeros(pixels.shape, dtype=np.float32)
    ends = np.cumsum(sizes)
    for rng, size, end, image_size in zip(rngs, sizes, ends, _own_sizes(batch, len(sizes)), strict=True):
        shape = (size, *pixels.shape[1 : pixels.dim() - len(image_size)], *image_size)
        noise[end - size : end][tuple(map(slice, shape))] = _noise(rng, shape, frames)
    abar = alpha_bar(step)
    noised = abar**0.5 * pixels + (1 - abar) ** 0.5 * torch.from_numpy(noise).to(pixels)
    if pixels.dim() == 5:  # (rows, tiles, ...): rows of fewer tiles are filled up with zeros, by which models know them
        noised[(pixels == 0).flatten(2).all(dim=2)] = 0
    return noised


def rows_of_pixels(
    processor: Any, batch: dict[str, "Tensor"], questions: Sequence["Question"], images: Sequence["Image.Image"]
) -> list[int]:
    """How many rows of `pixel_values` each question of the batch has: one, one a tile, or one a patch (Qwen-VL).

    Raises MfpoError where the model sees images by anything else, or it is unclear which rows are whose.
    """
    from mfpo.processors import encode_questions

    seen = [name for name, value in batch.items() if value.is_floating_point()]
    if seen != ["pixel_values"]:
        raise MfpoError(f"vcd: cannot add noise to {', '.join(seen)} of this model; decode greedily")
    pixels, grids = batch["pixel_values"], batch.get("image_grid_thw")
    if grids is not None:
        sizes = grids.prod(dim=1).tolist()
    elif len(pixels) == len(questions):
        sizes = [1] * len(questions)
    else:  # the tiles of all images, one after the other
        alone = [encode_questions(processor, [q["text"]], [image]) for q, image in zip(questions, images, strict=True)]
        sizes = [len(each["pixel_values"]) for each in alone]
    if (len(sizes), sum(sizes)) != (len(questions), len(pixels)):
        raise MfpoError(
            f"vcd: cannot tell which of {len(pixels)} rows of pixels belong to which of {len(questions)} questions; "
            "decode greedily"
        )
    return sizes


def _own_sizes(batch: dict[str, "Tensor"], questions: int) -> list[tuple[int, ...]]:
    """Height and width of each question's pixels where rows are filled up to the largest image's, else nothing."""
    pixels = batch["pixel_values"]
    if pixels.dim() == 4 and "image_sizes" in batch:  # Pixtral
        return [(int(height), int(width)) for height, width in batch["image_sizes"]]
    if pixels.dim() == 5 and "pixel_attention_mask" in batch:  # Idefics 2
        masks = batch["pixel_attention_mask"].bool().any(dim=1)
        return [(int(mask.any(dim=1).sum()), int(mask.any(dim=0).sum())) for mask in masks]
    return [()] * questions


def _noise(rng: np.random.Generator, shape: tuple[int, ...], frames: int) -> np.ndarray[Any, Any]:
    if frames == 1:
        return rng.standard_normal(shape, dtype=np.float32)
    patches, values = shape  # a patch is (channel, frame, height, width), flattened
    noise = rng.standard_normal((patches, 3, 1, values // (3 * frames)), dtype=np.float32)
    return np.repeat(noise, frames, axis=2).reshape(shape)


class Contrast:
    """Contrasts the first half of a batch, which sees the images, with the second, which sees the noised ones.

    Both halves get the same scores, so both continue with the same token. With `rngs`, Gumbel noise is added, so that
    the highest score is a sample, from each row's own generator. A logits processor of transformers'.
    """

    def __init__(self, alpha: float, beta: float, rngs: Sequence[np.random.Generator] | None) -> None:
        self.alpha, self.beta, self.rngs = alpha, beta, rngs
        self.is_heeded = False

    def __call__(self, input_ids: "Tensor", scores: "Tensor") -> "Tensor":
        self.is_heeded = True
        clean, noised = scores.chunk(2)
        scores = contrast(clean, noised, alpha=self.alpha, beta=self.beta)
        if self.rngs is not None:
            gumbel = np.stack([rng.gumbel(size=scores.shape[1]) for rng in self.rngs])
            scores = scores + scores.new_tensor(gumbel)
        return scores.repeat(2, 1)


@decoder("vcd")
def vcd(
    model: Any,
    processor: Any,
    questions: Sequence["Question"],
    images: Sequence["Image.Image"],
    max_new_tokens: int,
    *,
    cd_alpha: Annotated[float, about("weight of the contrast; 0: decode without the noised image", least=0)] = 1.0,
    cd_beta: Annotated[
        float, about("minimum probability of a candidate token, as a share of the likeliest one's", least=0, most=1)
    ] = 0.1,
    noise_step: Annotated[int, about("diffusion step of the noised image", least=0, most=STEPS - 1)] = 500,
    sample: Annotated[
        bool, about("sample at temperature 1, as VCD does; false: take the highest score, our extension")
    ] = True,
    seed: Annotated[int, about("seed of noise and sampling; each question has its own generators", least=0)] = 0,
) -> list[str]:
    """Answer one batch of questions, independently of the batch. The defaults are from VCD's scripts.

    Image and noised image are two rows of one batch, so each has its cache, and one pass serves both. Raises MfpoError
    as `rows_of_pixels`, and for a model whose `generate` drops the contrast (Janus).
    """
    import torch

    from mfpo.build.steps import generator
    from mfpo.models import plain_generation
    from mfpo.processors import encode_questions

    rngs = [generator(seed, question["question_id"]).spawn(2) for question in questions]
    batch = dict(encode_questions(processor, [question["text"] for question in questions], images))
    frames = getattr(processor.image_processor, "temporal_patch_size", 1)
    sizes = rows_of_pixels(processor, batch, questions, images)
    noised = add_noise(batch, [noise for noise, _ in rngs], sizes, step=noise_step, frames=frames)
    doubled = {name: torch.cat([value, value]) for name, value in batch.items()}
    doubled["pixel_values"] = torch.cat([batch["pixel_values"], noised])
    for name, value in doubled.items():
        doubled[name] = value.to(model.device, model.dtype if value.is_floating_point() else None)
    scores = Contrast(cd_alpha, cd_beta, [sampling for _, sampling in rngs] if sample else None)
    with plain_generation(model, processor.tokenizer):
        output = model.generate(**doubled, logits_processor=[scores], max_new_tokens=max_new_tokens)
    if not scores.is_heeded:
        raise MfpoError(
            f"vcd: {type(model).__name__} ignores logits processors, so nothing is contrasted; decode greedily"
        )
    answers = output[: len(questions), doubled["input_ids"].shape[1] :]
    return list(processor.batch_decode(answers, skip_special_tokens=True))
