"""The records to train on, of a folder or in memory: opened, checked, and encoded as the method reads them."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc

from mfpo.errors import MfpoError
from mfpo.logprobs.pairs import Pairs
from mfpo.records import TEXT_COLUMNS, column, read_dataset
from mfpo.settings import options_of
from mfpo.train.objectives import OBJECTIVES
from mfpo.train.settings import TrainSettings

IN_MEMORY = "the dataset in memory"


def open_data(data: Path | datasets.Dataset, settings: TrainSettings) -> datasets.Dataset:
    """The dataset, with the columns that the method needs. Raises MfpoError when it is not made for the method."""
    method = OBJECTIVES[settings.method]
    needs = [*TEXT_COLUMNS, *["rejected_images"] * method.needs_rejected_images]
    needs += ["corruption"] * (method.corruption is not None) + ["level"] * bool(settings.curriculum)
    dataset = read_dataset(data, needs=needs) if isinstance(data, Path) else check_dataset(data, needs)
    if method.corruption:
        kinds = {corruption["kind"] for corruption in column(dataset, "corruption")}
        if kinds != {method.corruption}:
            raise MfpoError(
                f"{data_name(data)}: method {settings.method} needs rejected images of kind {method.corruption}, but "
                f"these are {', '.join(sorted(kinds))}; run `mfpo build` with `corruption={method.corruption}`"
            )
    return dataset


def data_name(data: Path | datasets.Dataset) -> str:
    """How messages and provenance call it."""
    return str(data) if isinstance(data, Path) else IN_MEMORY


def check_dataset(dataset: Any, needs: Sequence[str]) -> datasets.Dataset:
    """A dataset in memory as `read_dataset` would give it; rows without an `id` get their number as one.

    Raises MfpoError when it is no Dataset or is empty, lacks one of the columns in `needs` or a value in one, holds
    other things than lists of images or messages, or when a row has not one rejected image an image.
    """
    if not isinstance(dataset, datasets.Dataset):
        raise MfpoError(f"the data is a {type(dataset).__name__}; give a folder, or a datasets.Dataset (one split)")
    if not len(dataset):
        raise MfpoError(f"{IN_MEMORY} holds no records")
    if "id" not in dataset.column_names:
        dataset = dataset.add_column("id", [str(row) for row in range(len(dataset))])
    missing = [name for name in needs if name not in dataset.column_names]
    if missing:
        command = "rank" if set(missing) <= {"entropy", "level"} else "build"
        raise MfpoError(f"{IN_MEMORY}: column {', '.join(missing)} is missing; run `mfpo {command}` first")
    kinds = {"images": "images", "rejected_images": "images"} | dict.fromkeys(TEXT_COLUMNS[2:], "messages")
    for name in [name for name in needs if name in kinds]:
        item = getattr(dataset.features[name], "feature", None)
        is_message = isinstance(item, dict) and {"role", "content"} <= item.keys()
        if not (is_message if kinds[name] == "messages" else isinstance(item, datasets.Image)):
            example = '[{"role": ..., "content": text}]' if kinds[name] == "messages" else "datasets.List(Image())"
            raise MfpoError(f"{IN_MEMORY}: column {name} must hold lists of {kinds[name]}, as in {example}")
    start = 0
    for table in dataset.select_columns(list(needs)).with_format("arrow").iter(batch_size=256):
        for name in needs:
            _refuse(pc.is_null(table[name]), start, f"column {name} is empty")
        if "rejected_images" in needs:
            lengths = (pc.list_value_length(table[name]) for name in ("images", "rejected_images"))
            _refuse(pc.not_equal(*lengths), start, "column rejected_images is not as long as images")
        start += len(table)
    return dataset


def _refuse(is_wrong: Any, start: int, fault: str) -> None:
    row = pc.index(is_wrong, True).as_py()
    if row >= 0:
        raise MfpoError(f"{IN_MEMORY}, row {start + row}: {fault}")


def dataset_hash(dataset: datasets.Dataset) -> str:
    """A hash of all that a dataset in memory holds, however it was made."""
    digest = hashlib.sha256()
    for table in dataset.with_format("arrow").iter(batch_size=32):
        for record in table.to_pylist():
            digest.update(json.dumps(_content(record), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _content(value: Any) -> Any:
    """A value of a row with the hash of each image in the image's place."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        content = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
        return hashlib.sha256(content).hexdigest()
    if isinstance(value, dict):
        return {name: _content(part) for name, part in value.items()}
    return [_content(part) for part in value] if isinstance(value, list) else value


def open_pairs(dataset: datasets.Dataset, processor: Any, settings: TrainSettings) -> Pairs:
    """The records as the method reads them."""
    method = OBJECTIVES[settings.method]
    weigh = partial(method.weigh, **options_of(settings, method.weigh)) if method.weigh else None
    needs_images = method.needs_rejected_images
    return Pairs(dataset, processor, rejected_images=needs_images, max_length=settings.max_length, weigh=weigh)
