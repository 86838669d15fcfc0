"""Ask a local model, in batches, with a decoder."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from mfpo.answer.collect import Engine
from mfpo.answer.decoders import DECODERS
from mfpo.answer.questions import Question
from mfpo.answer.settings import AnswerSettings
from mfpo.errors import MfpoError, first_line
from mfpo.hub import find_model
from mfpo.images import decode_image, load_image
from mfpo.models import (
    encode_questions,
    load_model,
    load_processor,
    model_files,
    model_hash,
    numbers_all_images,
    plain_generation,
)
from mfpo.settings import options_of


def open_transformers(
    model: Any, processor: Any, images: Path, settings: AnswerSettings, *, name: str | None = None
) -> Engine:
    """An engine of a model in memory, which is set to evaluate, or of one in a folder or on the Hub.

    Raises MfpoError when there is no model, and for one in memory without its processor.
    """
    if isinstance(model, str | Path):
        folder = find_model(str(model))
        name, fingerprint = name or str(model), model_files(folder)
        model, processor = load_model(folder), load_processor(folder)
    elif processor is None:
        raise MfpoError("a model in memory needs its processor; pass processor=load_processor(...)")
    else:
        name, fingerprint = name or model.name_or_path or "a model in memory", [model_hash(model, processor)]
        model.eval()
    decode = DECODERS[settings.decode]
    options = options_of(settings, decode)
    is_mixing: bool | None = None

    def ask(questions: Sequence[Question]) -> Iterator[tuple[Question, dict[str, Any]]]:
        nonlocal is_mixing
        for batch in _batches(questions, processor.tokenizer, settings.batch_size):
            opened = [decode_image(load_image(images, question["image"])) for question in batch]
            try:
                if is_mixing is None and len(batch) > 1:
                    is_mixing = _mixes_images(model, processor, batch, opened)
                size = 1 if is_mixing else len(batch)
                texts: list[str] = []
                for part in (slice(start, start + size) for start in range(0, len(batch), size)):
                    with torch.inference_mode():
                        texts += decode(model, processor, batch[part], opened[part], settings.max_new_tokens, **options)
            except torch.OutOfMemoryError:
                raise MfpoError(
                    f"no GPU memory for {len(batch)} questions at a time; give a smaller batch_size "
                    "(the answers so far are kept)"
                ) from None
            except _UNREADABLE:
                _check_fit(model, processor, batch[0], opened[0])
                raise
            if len(texts) != len(batch):
                raise MfpoError(f"decoder {settings.decode} gave {len(texts)} answers to {len(batch)} questions")
            yield from ((question, {"text": text.strip()}) for question, text in zip(batch, texts, strict=True))

    how = {"strategy": settings.decode, **options, "max_new_tokens": settings.max_new_tokens}
    return Engine({"model": name, "decode": how, "fingerprint": fingerprint}, ask)


# What models raise, depending on where they and what the processor makes part.
_UNREADABLE = (ValueError, TypeError, AttributeError, RuntimeError, IndexError)


def _mixes_images(model: Any, processor: Any, batch: Sequence[Question], opened: Sequence[Image]) -> bool | None:
    """Whether a question is read otherwise in a batch; None while all images are of one size, which tells only half.

    HunYuan-VL numbers the images of all questions; Emu3 pads its images to the largest.
    """

    def encoded(count: int) -> Any:
        texts = [question["text"] for question in batch[:count]]
        return encode_questions(processor, texts, opened[:count]).to(model.device, model.dtype)

    def first_token(count: int) -> torch.Tensor:
        inputs = encoded(count)
        generated = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
        return generated.logits[0][0].float().softmax(dim=-1)

    is_mixing = numbers_all_images(model, encoded(1))
    if not is_mixing:
        if len({image.size for image in opened}) == 1:
            return None
        with torch.inference_mode(), plain_generation(model, processor.tokenizer):
            off = float((first_token(1) - first_token(len(batch))).abs().max())
        is_mixing = off > (0.001 if model.dtype == torch.float32 else 0.1)  # beyond rounding
    if is_mixing:
        print(f"a {type(model).__name__} mixes images of one batch: questions are asked one by one", file=sys.stderr)
    return is_mixing


def _check_fit(model: Any, processor: Any, question: Question, image: Image) -> None:
    """Raises MfpoError when the model can generate nothing from what the processor makes of a question."""
    try:
        with torch.inference_mode():
            batch = encode_questions(processor, [question["text"]], [image]).to(model.device, model.dtype)
            model.generate(**batch, max_new_tokens=1)
    except _UNREADABLE as error:
        raise MfpoError(
            f"question {question['question_id']}: {type(model).__name__} cannot read what its processor makes of it "
            f"({first_line(error)})"
        ) from None


def _batches(questions: Sequence[Question], tokenizer: Any, size: int) -> Iterator[Sequence[Question]]:
    """Longest questions first, so that running out of memory shows at once; equal ones, whose answers
    have similar lengths, together."""
    lengths = {text: len(tokenizer(text)["input_ids"]) for text in {question["text"] for question in questions}}
    ordered = sorted(questions, key=lambda question: (-lengths[question["text"]], question["text"]))
    yield from (ordered[start : start + size] for start in range(0, len(ordered), size))
