"""Ask a local model questions about images, in batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from mfpo.answer.collect import Row, check_out, collect
from mfpo.answer.opera import opera
from mfpo.answer.questions import read_questions
from mfpo.answer.settings import GreedySettings, OPERASettings, VCDSettings
from mfpo.answer.vcd import vcd
from mfpo.errors import MfpoError
from mfpo.images import decode_image, load_image
from mfpo.models import cache_argument, encode_questions, load_model, load_processor, model_files


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


def greedy(
    model: Any,
    processor: Any,
    rows: Sequence[Row],
    images: Sequence[Image.Image],
    settings: GreedySettings,
    max_new_tokens: int,
) -> list[str]:
    """The likeliest token after the ones before it, again and again."""
    batch = dict(encode_questions(processor, [row["text"] for row in rows], images).to(model.device, model.dtype))
    if batch.keys() <= _PROMPT and model.generation_config.eos_token_id is not None:
        return list(processor.batch_decode(_dropping(model, batch, max_new_tokens), skip_special_tokens=True))
    output = model.generate(**batch, **_GREEDY, max_new_tokens=max_new_tokens)
    return list(processor.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True))


# A model's own generation settings may penalise repetitions; greedy means the likeliest token.
_GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
# Of LLaVA and Qwen-VL, where nothing but tokens and mask is needed once the prompt is in the cache.
_PROMPT = {"input_ids", "attention_mask", "pixel_values", "image_sizes", "image_grid_thw", "mm_token_type_ids"}


def _dropping(model: Any, batch: dict[str, Tensor], max_new_tokens: int) -> list[Tensor]:
    """The new tokens of each row. Rows that have ended leave the batch, or they cost as much as the longest one."""
    start = batch["input_ids"].shape[1]
    eos = torch.tensor(model.generation_config.eos_token_id, device=model.device).view(-1)
    cache = DynamicCache(config=model.config)
    name = cache_argument(model)
    answers: dict[int, Tensor] = {}
    rows = torch.arange(len(batch["input_ids"]), device=model.device)
    while True:
        before = batch["input_ids"].shape[1]
        left_over = start + max_new_tokens - before
        stop = StoppingCriteriaList([_ManyEnded(eos, start)])
        tokens = model.generate(**batch, **{name: cache}, **_GREEDY, max_new_tokens=left_over, stopping_criteria=stop)
        goes_on = ~torch.isin(tokens[:, start:], eos).any(dim=1) & (tokens.shape[1] < start + max_new_tokens)
        answers |= dict(zip(rows[~goes_on].tolist(), tokens[~goes_on, start:], strict=True))
        if not goes_on.any():
            return [answers[row] for row in range(len(answers))]
        rows, tokens = rows[goes_on], tokens[goes_on]
        mask = pad(batch["attention_mask"][goes_on], (0, tokens.shape[1] - before), value=1)
        batch = {"input_ids": tokens, "attention_mask": mask}
        cache.batch_select_indices(goes_on)
        if getattr(model.model, "rope_deltas", None) is not None:  # how far Qwen-VL's positions are behind, by row
            model.model.rope_deltas = model.model.rope_deltas[goes_on]


class _ManyEnded(StoppingCriteria):  # type: ignore[misc, unused-ignore]
    """Stops where a quarter of the rows, and at least four, have ended; going on with the others costs a bit, too."""

    def __init__(self, eos: Tensor, start: int) -> None:
        self.eos, self.start = eos, start

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        has_ended = torch.isin(input_ids[:, self.start :], self.eos).any(dim=1)
        return torch.full_like(has_ended, int(has_ended.sum()) >= max(4, len(has_ended) / 4))


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
