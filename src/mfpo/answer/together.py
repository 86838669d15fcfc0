"""Which questions of a batch a model can be asked together: all of them, unless it mixes their images."""

import sys
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL.Image import Image

from mfpo.models import numbers_all_images, plain_generation
from mfpo.processors import encode_questions

# What has been found out of each model.
_MIXES: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def parts(model: Any, processor: Any, texts: Sequence[str], images: Sequence[Image]) -> list[slice]:
    """The questions `texts`, each with its image, in parts to ask at once.

    That is the whole batch or, for a model that reads a question otherwise beside others, one question each.
    HunYuan-VL numbers the images of all questions; Emu3 pads its images to the largest.
    """
    if model not in _MIXES and len(texts) > 1:
        is_mixing = _mixes_images(model, processor, texts, images)
        if is_mixing is not None:
            _MIXES[model] = is_mixing
        if is_mixing:
            print(
                f"a {type(model).__name__} mixes up the images of a batch, so questions are asked one by one",
                file=sys.stderr,
            )
    if _MIXES.get(model):
        return [slice(number, number + 1) for number in range(len(texts))]
    return [slice(0, len(texts))]


def _mixes_images(model: Any, processor: Any, texts: Sequence[str], images: Sequence[Image]) -> bool | None:
    """Whether a question is read otherwise in the batch; None while images of one size tell only half."""

    def encoded(rows: Sequence[int]) -> Any:
        chosen = [texts[row] for row in rows], [images[row] for row in rows]
        return encode_questions(processor, *chosen).to(model.device, model.dtype)

    def first_token(rows: Sequence[int]) -> torch.Tensor:
        generated = model.generate(**encoded(rows), max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
        return generated.logits[0][0].float().softmax(dim=-1)

    if numbers_all_images(model, encoded([0])):
        return True
    if len({image.size for image in images}) == 1:
        return None
    # The smallest image, as the largest would be padded by nothing.
    rows = sorted(range(len(texts)), key=lambda row: images[row].width * images[row].height)
    with torch.inference_mode(), plain_generation(model, processor.tokenizer):
        off = float((first_token(rows[:1]) - first_token(rows)).abs().max())
    return off > (0.001 if model.dtype == torch.float32 else 0.1)  # beyond rounding
