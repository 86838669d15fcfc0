"""Records as encoded sequences, the form in which reference, training and probes see them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import datasets
import torch
from accelerate.utils import extract_model_from_parallel
from PIL import Image
from torch import Tensor

from mfpo.errors import MfpoError, RecordError, brief, first_line
from mfpo.logprobs.sequences import Encoded, collate, encode, pad_id, sequence_logps

# Processed images are kept in memory up to here, so that each is decoded and resized once and not once an epoch.
_CACHE_BYTES = 4 << 30

# A prompt's tokens and those of its answers -> a weight for each token of each answer.
Weigh = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Pair:
    """A record: its row in the dataset, and its prompts: (m, t) with y_w and y_l and, if wanted, (m', t) with y_w."""

    row: int
    prompts: tuple[Encoded, ...]


class Pairs(torch.utils.data.Dataset[Pair]):
    """A dataset of preference records, encoded when first asked for.

    `ids` are the records' ids, `names` what the sequences of each record are. `weigh` gives the tokens of a prompt's
    answers the weights that they have in the answers' sums.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        processor: Any,
        *,
        rejected_images: bool,
        max_length: int,
        weigh: Weigh | None = None,
    ) -> None:
        columns = ["id", "images", "prompt", "chosen", "rejected"] + ["rejected_images"] * rejected_images
        self._dataset = dataset.select_columns(columns)
        self._processor = processor
        self._max_length = max_length
        self._weigh = weigh
        self._cache: dict[int, Pair] = {}
        self._free = _CACHE_BYTES
        self.ids: list[str] = list(dataset["id"])
        self.pad_id = pad_id(processor)
        self.end_id: int = processor.tokenizer.eos_token_id
        self.names = ("chosen", "rejected") + ("rejected_image",) * rejected_images

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Pair:
        """The record at `index`. Raises RecordError with the record's id."""
        if index in self._cache:
            return self._cache[index]
        try:
            pair = Pair(index, self._encode(self._record(index)))
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
        answers = {"images": [record["chosen"], record["rejected"]], "rejected_images": [record["chosen"]]}
        prompts = []
        for column in [name for name in answers if name in record]:
            given = (record[column], record["prompt"], answers[column])
            encoded = encode(self._processor, *given, max_length=self._max_length)
            if self._weigh:
                encoded = replace(encoded, weights=self._weigh(encoded.prompt_ids, encoded.answers))
            prompts.append(encoded)
        return tuple(prompts)

    def collate(self, pairs: Sequence[Pair], *, shared: bool = False) -> dict[str, Tensor]:
        """One batch of all sequences, record by record in the order of `names`; `rows` are the records.

        `shared` lays all answers to a prompt behind it in one row, for models that share the prefix.
        """
        prompts = [prompt for pair in pairs for prompt in pair.prompts]
        rows = prompts if shared else [row for prompt in prompts for row in prompt.split()]
        return {"rows": torch.tensor([pair.row for pair in pairs]), **collate(rows, self.pad_id)}


def check_fit(model: Any, pairs: Pairs, name: str, autocast: AbstractContextManager[Any] | None = None) -> None:
    """Raises MfpoError when the model, called `name`, cannot read what the processor makes of the first record.

    `autocast` is the precision context to compute in.
    """
    batch = pairs.collate([pairs[0]])
    batch.pop("rows")
    known = model.get_input_embeddings().num_embeddings
    if int(batch["input_ids"].max()) >= known:
        fault = f"it knows {known} tokens"
    else:
        try:
            with torch.inference_mode(), autocast or nullcontext():
                sequence_logps(model, batch)
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
    raise MfpoError(f"{where}; {type(extract_model_from_parallel(model)).__name__} is not known to run")
