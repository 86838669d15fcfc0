"""Ask a local model, in batches, with a decoder."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from mfpo.answer.collect import Engine
from mfpo.answer.decoders import DECODERS
from mfpo.answer.questions import Question
from mfpo.answer.settings import AnswerSettings
from mfpo.answer.together import parts
from mfpo.errors import MfpoError, first_line
from mfpo.hub import find_model
from mfpo.images import decode_image, load_image
from mfpo.models import load_model, model_files
from mfpo.processors import encode_questions, processor_of
from mfpo.settings import options_of


def open_transformers(
    model: Any, processor: Any, images: Path, settings: AnswerSettings, *, name: str | None = None
) -> Engine:
    """An engine of a model in memory, which is set to evaluate, or of one in a folder or on the Hub.

    Raises MfpoError when there is no model, and for one in memory without its processor.
    """
    processor = processor_of(model, processor)
    if isinstance(model, str | Path):
        name, model = name or str(model), find_model(str(model))
    else:
        name = name or model.name_or_path or "a model in memory"
    fingerprint = model_files(model, processor)
    model = load_model(model) if isinstance(model, Path) else model.eval()
    decode = DECODERS[settings.decode]
    options = options_of(settings, decode)

    def ask(questions: Sequence[Question]) -> Iterator[tuple[Question, dict[str, Any]]]:
        for batch in _batches(questions, processor.tokenizer, settings.batch_size):
            opened = [decode_image(load_image(images, question["image"])) for question in batch]
            try:
                texts: list[str] = []
                for part in parts(model, processor, [question["text"] for question in batch], opened):
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
    made_by = {"model": name, "decode": how, "fingerprint": fingerprint, "images": os.path.abspath(images)}
    return Engine(made_by, ask)


# What models raise, depending on where they and what the processor makes part.
_UNREADABLE = (ValueError, TypeError, AttributeError, RuntimeError, IndexError)


def _check_fit(model: Any, processor: Any, question: Question, image: Image) -> None:
    """Raises MfpoError when the model can generate nothing from what the processor makes of a question."""
    try:
        with torch.inference_mode():
            batch = encode_questions(processor, [question["text"]], [image]).to(model.device, model.dtype)
            model.generate(**batch, max_new_tokens=1)
    except _UNREADABLE as error:
        raise MfpoError(
            f"question {question['question_id']}: {type(model).__name__} cannot read its processor's output "
            f"({first_line(error)})"
        ) from None


def _batches(questions: Sequence[Question], tokenizer: Any, size: int) -> Iterator[Sequence[Question]]:
    """Longest questions first, so that running out of memory shows at once; equal ones, whose answers
    have similar lengths, together."""
    lengths = {text: len(tokenizer(text)["input_ids"]) for text in {question["text"] for question in questions}}
    ordered = sorted(questions, key=lambda question: (-lengths[question["text"]], question["text"]))
    yield from (ordered[start : start + size] for start in range(0, len(ordered), size))
