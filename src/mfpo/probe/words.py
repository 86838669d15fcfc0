"""Where an object is: the tokens of its word in the answer, and its mask on the grid of the image tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mfpo.errors import MfpoError, RecordError
from mfpo.logprobs.sequences import Encoded, encode, render
from mfpo.masks import Mask
from mfpo.probe.cases import Case
from mfpo.probe.settings import At
from mfpo.report.texts import keyword_spans


@dataclass(frozen=True)
class Word:
    """A keyword in the chosen answer: its places in the sequence (prompt and answer), and its mask on the grid.

    `cover`, (side, side), is the share of each image token's patch that the mask covers.
    """

    text: str
    places: list[int]
    cover: Tensor


class UnknownGrid(MfpoError):
    """Where a model's image tokens are in the image is not known."""


def check_grid(name: str, processor: Any) -> None:
    """Raises UnknownGrid when a model's processor does not make a square of CLIP patches of each image."""
    if type(processor).__name__ != "LlavaProcessor" or processor.vision_feature_select_strategy != "default":
        raise _no_grid(name, type(processor).__name__)


def check_kind(name: str, config: Any) -> None:
    """Raises UnknownGrid when a model is no LLaVA with a CLIP tower, whose image tokens are its patches row by row."""
    tower = getattr(config, "vision_config", None)
    if config.model_type != "llava" or getattr(tower, "model_type", None) != "clip_vision_model":
        raise _no_grid(name, f"a {config.model_type} model")


def _no_grid(name: str, what: str) -> UnknownGrid:
    return UnknownGrid(
        f"{name}: the grid of its image tokens is not known ({what}); `probe attention` takes models of LLaVA-1.5's "
        "kind: llava with a CLIP tower, such as llava-hf/llava-1.5-7b-hf and the picture book's"
    )


def find_words(processor: Any, case: Case, *, at: At, max_length: int) -> tuple[Encoded, list[Word]]:
    """The case as one sequence, and the keywords that have a mask and are in the chosen answer, in its order.

    A word has the places of all tokens of all its mentions; `before` are the places that predict these. Raises
    RecordError when there is no such word in what the model sees, or the answer is cut.
    """
    encoded = encode(processor, [case.image], case.prompt, [case.chosen], max_length=max_length)
    if encoded.cut[0]:
        raise RecordError(f"prompt and answer have more than max_length={max_length} tokens")
    prompt_text, (text,) = render(processor, case.prompt, [case.chosen], images=1)
    tokens = token_spans(processor.tokenizer, prompt_text, text, encoded.answers[0].tolist())
    first = len(encoded.prompt_ids) - (at == "before")
    places: dict[str, list[int]] = {}
    for span in keyword_spans(text, dict.fromkeys(case.masks, "")):
        spoken = [first + n for n, (start, end) in enumerate(tokens) if start < span.end and span.start < end]
        places.setdefault(span.title, []).extend(spoken)
    words = [Word(word, at_tokens, on_grid(processor, case.masks[word])) for word, at_tokens in places.items()]
    words = [word for word in words if word.places and word.cover.sum() > 0]
    if not words:
        raise RecordError("no keyword with a region is both in the chosen answer and in the part of the image seen")
    return encoded, words


def token_spans(tokenizer: Any, prompt_text: str, text: str, ids: list[int]) -> list[tuple[int, int]]:
    """The characters of an answer's `text`, from start to end, that each of its tokens `ids` stands for."""
    if not tokenizer.is_fast:
        raise MfpoError("the model's tokenizer does not say which characters its tokens stand for; use a fast one")
    # As `encode` does: the answer's tokens as they follow the prompt, or alone.
    for before in (prompt_text, ""):
        encoded = tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True)
        if encoded["input_ids"][-len(ids) :] == ids:
            return [(start - len(before), end - len(before)) for start, end in encoded["offset_mapping"][-len(ids) :]]
    raise RecordError("the tokens of the chosen answer cannot be found in its text")


def as_seen(processor: Any, image: Image.Image) -> Tensor:
    """The image as the vision tower gets it, resized and cropped, but with colours from 0 to 1, (3, side, side)."""
    inputs = processor.image_processor(images=image, image_mean=[0.0] * 3, image_std=[1.0] * 3, return_tensors="pt")
    return inputs["pixel_values"][0].clamp(0, 1)


def on_grid(processor: Any, mask: Mask) -> Tensor:
    """The share of each image token's patch that `mask`, (height, width), covers, (side, side).

    The mask goes the way of its image, through the model's own resizing and cropping.
    """
    seen = as_seen(processor, Image.fromarray(mask * np.uint8(255)).convert("RGB"))
    return F.avg_pool2d(seen[:1], processor.patch_size)[0]
