"""Records as encoded sequences, the form in which reference, training and probes see them."""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import datasets
import torch
import transformers
from accelerate.utils import extract_model_from_parallel
from PIL import Image
from torch import Tensor

from mfpo.errors import MfpoError, RecordError, brief, first_line
from mfpo.logprobs.cells import CELLS, columns, in_rows
from mfpo.logprobs.sequences import Encoded, collate, encode, pad_id, sequence_logps
from mfpo.models import numbers_all_images
from mfpo.records import without_images

# Processed images are kept in memory up to here, so that each is decoded and resized once and not once an epoch.
_CACHE_BYTES = 4 << 30

# Records among which `check_fit` looks for images of another size than the first one's.
_TRIED = 8

# A prompt's tokens, and those of y_w and y_l or of one other answer -> a weight for each token of each answer.
Weigh = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Pair:
    """A record: its row in the dataset, and its prompts, one an image; their answers are the cells `names`."""

    row: int
    prompts: tuple[Encoded, ...]
    names: tuple[str, ...]

    def only(self, names: Collection[str]) -> "Pair":
        """The record with these of its cells."""
        ours = iter(self.names)
        wanted = [[next(ours) in names for _ in prompt.answers] for prompt in self.prompts]
        prompts = (prompt.only(which) for prompt, which in zip(self.prompts, wanted, strict=True) if any(which))
        return Pair(self.row, tuple(prompts), tuple(name for name in self.names if name in names))


class Pairs(torch.utils.data.Dataset[Pair]):
    """A dataset of preference records, encoded when first asked for.

    `cells` are the answers and images to encode (`mfpo.logprobs.cells`). `ids` are the records' ids, `names` the cells
    in the order of a record's sequences. `weigh` gives the tokens of answers the weights that they have in the answers'
    sums: y_w and y_l are weighed as a pair, which needs their cells under m. `batch_setting` is what the user calls the
    number of records in a batch.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        processor: Any,
        *,
        cells: Iterable[str],
        max_length: int,
        weigh: Weigh | None = None,
        batch_setting: str = "batch_size",
    ) -> None:
        self.names = in_rows(cells)
        self._dataset = dataset.select_columns(["id", "prompt", *columns(self.names)])
        self._processor = processor
        self._max_length = max_length
        self._weigh = weigh
        self.batch_setting = batch_setting
        self._cache: dict[int, Pair] = {}
        self._free = _CACHE_BYTES
        self.ids: list[str] = list(dataset["id"])
        self.pad_id = pad_id(processor)
        self.end_id: int = processor.tokenizer.eos_token_id

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Pair:
        """The record at `index`. Raises RecordError with the record's id."""
        if index in self._cache:
            return self._cache[index]
        try:
            pair = Pair(index, self._encode(self._record(index)), self.names)
        except RecordError as error:
            raise RecordError(f"record {brief(self.ids[index])}: {error}") from None
        size = sum(value.nbytes for prompt in pair.prompts for value in prompt.features.values())
        if size <= self._free:
            self._free -= size
            self._cache[index] = pair
        return pair

    def _record(self, index: int) -> dict[str, Any]:
        """The record with its images decoded."""
        try:
            record = self._dataset[index]
            for column in {"images", "rejected_images"} & record.keys():
                record[column] = [image.convert("RGB") for image in record[column]]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as to the format
            raise RecordError(f"one of its images cannot be read ({first_line(error)})") from None
        return record

    def _encode(self, record: dict[str, Any]) -> tuple[Encoded, ...]:
        prompts: list[Encoded] = []
        tokens: dict[str, Tensor] = {}
        for images, cells in groupby((CELLS[name] for name in self.names), key=lambda cell: cell.images):
            columns = [cell.answer for cell in cells]
            prompt = record["prompt"] if images else without_images(record["prompt"])
            conversation = (record[images] if images else [], prompt, [record[column] for column in columns])
            encoded = encode(self._processor, *conversation, max_length=self._max_length)
            if self._weigh:
                tokens |= dict(zip(columns, encoded.answers, strict=True))
                weights = tuple(self._weights(encoded.prompt_ids, tokens, column) for column in columns)
                encoded = replace(encoded, weights=weights)
            prompts.append(encoded)
        return tuple(prompts)

    def _weights(self, prompt_ids: Tensor, tokens: dict[str, Tensor], column: str) -> Tensor:
        """The weights of an answer's tokens behind a prompt; `tokens` are those of the record's answers."""
        assert self._weigh
        pair = ("chosen", "rejected")
        if column not in pair:
            return self._weigh(prompt_ids, (tokens[column],))[0]
        return self._weigh(prompt_ids, tuple(tokens[name] for name in pair))[pair.index(column)]

    def collate(self, pairs: Sequence[Pair], *, shared: bool = False) -> dict[str, Tensor]:
        """One batch of all sequences, record by record in the order of `names`; `rows` are the records.

        `shared` lays all answers to a prompt behind it in one row, for models that share the prefix. Raises RecordError
        when the model cannot see their images at a time.
        """
        prompts = [prompt for pair in pairs for prompt in pair.prompts]
        rows = prompts if shared else [row for prompt in prompts for row in prompt.split()]
        try:
            return {"rows": torch.tensor([pair.row for pair in pairs]), **collate(rows, self.pad_id)}
        except RecordError as error:
            if len(pairs) > 1:
                raise RecordError(f"{error}; set {self.batch_setting}=1") from None
            record = brief(self.ids[pairs[0].row])
            raise RecordError(f"record {record}: {error}, which the method compares; choose another method") from None


def check_fit(
    model: Any,
    pairs: Pairs,
    name: str,
    autocast: AbstractContextManager[Any] | None = None,
    *,
    batch_size: int = 1,
) -> None:
    """Raises MfpoError when the model, called `name`, cannot read what the processor makes of the first record.

    Also when log p depends on images of another size in the batch, or on the row before. `autocast` is the precision
    context to compute in.
    """
    batch = _collated(pairs, [0])
    beside = _row_of_another_size(pairs) if batch_size > 1 else None
    known = model.get_input_embeddings().num_embeddings
    if int(batch["input_ids"].max()) >= known:
        fault = f"it knows {known} tokens"
    else:
        try:
            with torch.inference_mode(), autocast or nullcontext():
                if numbers_all_images(model, _first_prompt(pairs)):
                    raise MfpoError(
                        f"{name}: a {_kind(model)!r} model numbers the images of all rows of a batch, so that log p "
                        "depends on the rows before; use another model"
                    )
                sequence_logps(model, batch)
                _check_alike(model, pairs, [0], name)
                if beside is not None:
                    _check_alike(model, pairs, [0, beside], name)
            return
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:  # as to where they part
            fault = first_line(error)
    where = (
        f"{name}: the model cannot read what the processor beside it makes of record {brief(pairs.ids[0])} ({fault})"
    )
    if any(words in fault for words in ("tokens", "shape", "size")):
        raise MfpoError(f"{where}; put the model's own processor there")
    kind = _kind(model)
    raise MfpoError(f"{where}; a {kind!r} model is not known to run with transformers {transformers.__version__}")


def _kind(model: Any) -> str:
    kind: str = extract_model_from_parallel(model).config.model_type
    return kind


def _first_prompt(pairs: Pairs) -> dict[str, Tensor]:
    prompt = pairs[0].prompts[0]
    return {"input_ids": prompt.prompt_ids[None], **prompt.features}


def _collated(pairs: Pairs, rows: Sequence[int]) -> dict[str, Tensor]:
    batch = pairs.collate([pairs[row] for row in rows])
    batch.pop("rows")
    return batch


def _sizes(prompt: Encoded) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in prompt.features.items()}


def _row_of_another_size(pairs: Pairs) -> int | None:
    """The first record, among a few, whose images are not of the first record's sizes, so that a batch is padded."""
    sizes = [[_sizes(prompt) for prompt in pairs[row].prompts] for row in range(min(len(pairs), _TRIED))]
    return next((row for row, row_sizes in enumerate(sizes) if row_sizes != sizes[0]), None)


def _check_alike(model: Any, pairs: Pairs, rows: Sequence[int], name: str) -> None:
    """Raises MfpoError when log p of prompts with images of several sizes is another in one batch than alone."""
    prompts = [prompt for row in rows for prompt in pairs[row].prompts]
    if all(_sizes(prompt) == _sizes(prompts[0]) for prompt in prompts):
        return
    batch = _collated(pairs, rows)
    together = sequence_logps(model, batch)
    alone = torch.cat([sequence_logps(model, collate(prompt.split(), pairs.pad_id)) for prompt in prompts])
    is_exact = model.dtype == torch.float32 and not torch.is_autocast_enabled(alone.device.type)
    # Rounding, which adds up over an answer as a random walk does.
    off = (alone - together).abs() / batch["answer_mask"].to(alone.device).sum(dim=-1).sqrt()
    if float(off.max()) > (0.01 if is_exact else 0.25):
        record = pairs.ids[rows[int(off.argmax()) // len(pairs.names)]]
        hint = f"set {pairs.batch_setting}=1" if len(rows) > 1 else "give the rejected images the sizes of the images"
        raise MfpoError(
            f"{name}: log p of record {brief(record)} changes beside images of another size, as a {_kind(model)!r} "
            f"model mixes them; {hint}"
        )
