"""Ask a local model questions about images, in batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from mfpo.decode.opera import OPERASettings, opera
from mfpo.decode.vcd import VCDSettings, vcd
from mfpo.errors import MfpoError
from mfpo.evaluate.collect import Row, check_out, collect
from mfpo.evaluate.questions import read_questions
from mfpo.models import encode_questions, load_model, load_processor, model_files
from mfpo.records import decode_image, load_image


def answer(
    questions: Path,
    model_path: Path,
    images: Path,
    out: Path,
    *,
    name: str | None = None,
    strategy: str = "greedy",
    settings: Any = None,
    batch_size: int = 32,
    max_new_tokens: int = 512,
) -> int:
    """Answer each question of a file (`read_questions`); return how many there were.

    `name` is what the answers call the model, by default its folder. `strategy` is one of `DECODERS`, `settings` are
    that one's, or None for its defaults. `out` gets a line an answer, as `collect` writes it. A killed run goes on
    where it stopped, if questions, model and settings are the same. Raises MfpoError when a question lacks a key, an
    id comes twice, or an image cannot be read, before anything is generated.
    """
    settings = settings or DECODERS[strategy].settings()
    rows = read_questions(questions, images)
    check_out(out)
    model, processor = load_model(model_path), load_processor(model_path)
    decode = {"strategy": strategy, **asdict(settings), "max_new_tokens": max_new_tokens}
    made_by = {"model": name or str(model_path), "decode": decode, "fingerprint": model_files(model_path)}
    run = partial(generate, model, processor, strategy=strategy, settings=settings, max_new_tokens=max_new_tokens)
    return collect(rows, partial(_ask, run, processor, images, batch_size=batch_size), out, made_by).questions


@torch.inference_mode()
def generate(
    model: Any,
    processor: Any,
    rows: Sequence[Row],
    images: Path,
    *,
    strategy: str,
    settings: Any,
    max_new_tokens: int,
) -> list[str]:
    """The answers to one batch of questions."""
    opened = [decode_image(load_image(images, row["image"])) for row in rows]
    texts = DECODERS[strategy].decode(model, processor, rows, opened, settings, max_new_tokens)
    return [text.strip() for text in texts]


@dataclass(frozen=True, kw_only=True)
class GreedySettings:
    """Greedy decoding has nothing to set."""


def greedy(
    model: Any,
    processor: Any,
    rows: Sequence[Row],
    images: Sequence[Image.Image],
    settings: GreedySettings,
    max_new_tokens: int,
) -> list[str]:
    """The likeliest token after the ones before it, again and again."""
    batch = encode_questions(processor, [row["text"] for row in rows], images).to(model.device, model.dtype)
    # A model's own generation settings may penalise repetitions; greedy means the likeliest token.
    output = model.generate(
        **batch, do_sample=False, num_beams=1, repetition_penalty=1.0, max_new_tokens=max_new_tokens
    )
    return list(processor.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True))


class Decoder(NamedTuple):
    """The class of its settings, and the function that answers a batch of questions."""

    settings: type[Any]
    decode: Callable[..., list[str]]


# What `mfpo answer --decode` chooses from.
DECODERS: dict[str, Decoder] = {
    "greedy": Decoder(GreedySettings, greedy),
    "vcd": Decoder(VCDSettings, vcd),
    "opera": Decoder(OPERASettings, opera),
}


def _ask(
    run: Callable[[Sequence[Row], Path], list[str]],
    processor: Any,
    images: Path,
    rows: Sequence[Row],
    *,
    batch_size: int,
) -> Iterator[tuple[Row, Row]]:
    """The longest questions first, so that running out of memory shows at once; equal ones, whose answers are of
    similar length, side by side."""
    lengths = {text: len(processor.tokenizer(text)["input_ids"]) for text in {row["text"] for row in rows}}
    rows = sorted(rows, key=lambda row: (-lengths[row["text"]], row["text"]))
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        try:
            texts = run(batch, images)
        except torch.OutOfMemoryError:
            raise MfpoError(
                f"no GPU memory for {len(batch)} questions at a time; give a smaller --batch-size "
                "(the answers so far are kept)"
            ) from None
        yield from zip(batch, ({"text": text} for text in texts), strict=True)
