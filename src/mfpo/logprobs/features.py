"""A processor's outputs besides the tokens, and how to join those of several rows into a batch.

Looked up once for each processor, in what it makes of a prompt, of the prompt twice, and of the prompt answered.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mfpo.errors import MfpoError, RecordError, first_line
from mfpo.logprobs.prefix import LAYOUT, TOKEN_TYPES
from mfpo.processors import call_processor

# Made anew for every batch, or the targets of another loss.
_NO_FEATURES = ("input_ids", "attention_mask", "labels")


@dataclass(frozen=True)
class Layout:
    """How the values of a feature are joined: along dimension `join`.

    Where `by_token`, dimension 1 is that of the tokens, and those of answers have the value `answer` or, where that is
    None, what the prompt's last token has.
    """

    join: int = 0
    by_token: bool = False
    answer: int | None = None


# The type of a token in most families: an answer's is text, which is 0.
_TOKEN_TYPE = Layout(by_token=True, answer=0)

_LAYOUTS: WeakKeyDictionary[Any, dict[str, Layout]] = WeakKeyDictionary()


def process(
    processor: Any, prompt: str, answer: str, images: Sequence[Image.Image]
) -> tuple[Tensor, dict[str, Tensor], Mapping[str, Layout]]:
    """The tokens of `prompt`, (length,), its features and their layouts; `answer` is one to it.

    Raises RecordError when the processor cannot take the prompt, and MfpoError when what it makes of it is nothing that
    several prompts can be joined in, or that goes on over an answer.
    """
    inputs = _call(processor, prompt, images)
    features = {name: value for name, value in inputs.items() if name not in _NO_FEATURES}
    if not features.keys() <= _LAYOUTS.get(processor, {}).keys():
        _LAYOUTS[processor] = _find_layouts(processor, inputs, prompt, answer, images)
    layouts = _LAYOUTS.setdefault(processor, {})
    ids = inputs["input_ids"]
    # Some processors leave out the types of tokens where there is no image.
    features |= {name: torch.zeros_like(ids) for name in layouts.keys() - features.keys() if layouts[name].by_token}
    return ids[0], features, layouts


def _call(processor: Any, prompt: str, images: Sequence[Image.Image], *, times: int = 1, **options: Any) -> Any:
    try:
        return call_processor(processor, [prompt] * times, [images] * times, **options)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError) as error:  # as to the processor
        raise RecordError(f"the model's processor cannot take the prompt ({first_line(error)})") from None


def _find_layouts(
    processor: Any, once: Any, prompt: str, answer: str, images: Sequence[Image.Image]
) -> dict[str, Layout]:
    twice = _call(processor, prompt, images, times=2)
    if "suffix" in inspect.signature(type(processor).__call__).parameters:  # PaliGemma's, which tells answers apart
        answered = _call(processor, prompt, images, suffix=[answer])
    else:
        answered = _call(processor, prompt + answer, images)
    lengths = [inputs["input_ids"].shape[1] for inputs in (once, answered)]
    layouts = {}
    for name in once:
        if name not in _NO_FEATURES:
            fault, layout = _layout(name, *(inputs[name] for inputs in (once, twice, answered)), *lengths)
            if fault:
                raise MfpoError(f"the model's processor makes {name!r} of a prompt, which {fault}; give another model")
            layouts[name] = layout
    return layouts


def _layout(name: str, once: Any, twice: Any, answered: Any, length: int, longer: int) -> tuple[str | None, Layout]:
    """How the feature is joined; `length` and `longer` are the tokens of the prompt and of the answered one."""
    if not all(map(torch.is_tensor, (once, twice, answered))):
        return "is not a tensor that a batch can hold", Layout()
    joins = [dim for dim in range(once.ndim) if torch.equal(twice, torch.cat([once, once], dim))]
    if not joins:
        return f"is {tuple(once.shape)}, and for two prompts not twice that but {tuple(twice.shape)}", Layout()
    if once.shape == answered.shape:
        return None, Layout(join=joins[0])
    tail = answered[:, length:]
    if name in LAYOUT or joins[0] != 0 or once.shape[1] != length or answered.shape[1] != longer:
        return f"is {tuple(once.shape)} and grows to {tuple(answered.shape)} with an answer", Layout()
    if tail.ndim == 2 and (tail == tail[0, 0]).all():
        return None, Layout(by_token=True, answer=int(tail[0, 0]))
    if torch.equal(tail, once[:, -1:].expand_as(tail)):
        return None, Layout(by_token=True)
    return "has values for an answer's tokens that do not follow from the prompt's", Layout()


def join(name: str, given: Sequence[Tensor | None], layout: Layout | None, answer_tokens: Sequence[int]) -> Tensor:
    """A feature of several rows as one of their batch; `answer_tokens` are those behind each row's prompt.

    Rows without an image have no value, None, of what is not by token. What is smaller than in another row is padded
    with zeros, as processors pad images of fewer tiles.
    """
    layout = layout or (_TOKEN_TYPE if name in TOKEN_TYPES else Layout())
    values = [value for value in given if value is not None]
    if layout.by_token and len({value.shape[2:] for value in values}) > 1:
        # Llama 3.2's text before its images attends to them, and would to those of other rows.
        raise RecordError(f"the model cannot see prompts with different numbers of images in one batch ({name})")
    if layout.by_token:
        values = [_continued(value, layout, count) for value, count in zip(values, answer_tokens, strict=True)]
    sizes = [max(size) for size in zip(*(value.shape for value in values), strict=True)]
    sizes[layout.join] = 0
    padded = []
    for value in values:
        missing = [max(size - has, 0) for size, has in zip(sizes, value.shape, strict=True)]
        padded.append(F.pad(value, [n for m in reversed(missing) for n in (0, m)]) if any(missing) else value)
    return torch.cat(padded, dim=layout.join)


def _continued(value: Tensor, layout: Layout, tokens: int) -> Tensor:
    last = value[:, -1:]
    last = last if layout.answer is None else torch.full_like(last, layout.answer)
    return torch.cat([value, last.expand(-1, tokens, *last.shape[2:])], dim=1)
