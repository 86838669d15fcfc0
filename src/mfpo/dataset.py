"""A dataset of records: opened from a folder or in memory, checked, and hashed."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mfpo.errors import MfpoError, first_line
from mfpo.folders import check_shards, fingerprint

# How messages and provenance call a dataset that is in no folder.
DATASET_IN_MEMORY = "the dataset in memory"

# How to get a column that `mfpo build` fills only sometimes.
_HOW = {
    "counter": "it holds the right answer to the rejected image: run `mfpo build` with corruption=given on data that "
    "has it, or on the picture book with corruption=counterfactual"
}

# Lists of images or of messages, none of which may be missing.
_FILLED = ("images", "prompt", "chosen", "rejected", "counter")
# A record needs these to train with any method.
TEXT_COLUMNS = ("id", "images", "prompt", "chosen", "rejected")


def read_dataset(data: str | Path | datasets.Dataset, needs: Sequence[str] = TEXT_COLUMNS) -> datasets.Dataset:
    """Open a folder that `mfpo build` or `mfpo rank` wrote, or check a dataset in memory.

    Rows without an `id` get their number as one. Raises MfpoError when the folder holds no readable shards, when there
    are no rows, when one of the columns in `needs` is missing, holds another thing than it should or nothing in a row,
    or when a row has not one rejected image an image.
    """
    if isinstance(data, str | Path):
        dataset, where = _open_shards(Path(data)), str(data)
    elif isinstance(data, datasets.Dataset):
        dataset, where = data, DATASET_IN_MEMORY
    else:
        raise MfpoError(f"the data is a {type(data).__name__}; give a folder, or a datasets.Dataset (one split)")
    if not len(dataset):
        raise MfpoError(f"{where} holds no records")
    if "id" not in dataset.column_names:
        dataset = dataset.add_column("id", [str(row) for row in range(len(dataset))])
    elif dataset.features["id"].dtype in ("int32", "int64"):
        dataset = dataset.cast_column("id", datasets.Value("string"))
    _check_columns(dataset, where, needs)
    has_pairs = {"images", "rejected_images"} <= set(dataset.column_names)
    checked = {*needs, "images", "rejected_images"} if has_pairs else needs
    start = 0
    for table in dataset.select_columns(list(checked)).with_format("arrow").iter(batch_size=256):
        for name in needs:
            how = _HOW.get(name, "fill it or leave the row out" if where == DATASET_IN_MEMORY else "build it again")
            _refuse(pc.is_null(table[name]), where, start, f"column {name} is empty; {how}")
            if name in _FILLED:
                is_empty = pc.equal(pc.list_value_length(table[name]), 0)
                _refuse(is_empty, where, start, f"column {name} is empty; {how}")
                _refuse(_holds_null(table[name]), where, start, f"column {name} holds an empty entry; {how}")
        if has_pairs:
            lengths = (pc.list_value_length(table[name]) for name in ("images", "rejected_images"))
            _refuse(
                pc.not_equal(*lengths), where, start, "column rejected_images is not as long as images; build it again"
            )
        start += len(table)
    return dataset


def _check_columns(dataset: datasets.Dataset, where: str, needs: Sequence[str]) -> None:
    """Raises MfpoError when a column is missing or holds another kind of thing than it should."""
    missing = [name for name in needs if name not in dataset.column_names]
    if missing:
        command = "rank" if set(missing) <= {"entropy", "level"} else "build"
        how = f"run `mfpo {command}` first"
        how = _HOW.get(missing[0], how) if len(missing) == 1 else how
        raise MfpoError(f"{where}: column {', '.join(missing)} is missing; {how}")
    for name in needs:
        item = getattr(dataset.features[name], "feature", None)
        if name in ("images", "rejected_images") and not isinstance(item, datasets.Image):
            raise MfpoError(f"{where}: column {name} must hold lists of images, as in datasets.List(Image())")
        is_message = (
            isinstance(item, dict)
            and {"role", "content"} <= item.keys()
            and getattr(item["content"], "dtype", None) in ("string", "large_string")
        )
        if name in _FILLED[1:] and not is_message:
            raise MfpoError(
                f'{where}: column {name} must hold lists of messages, as in [{{"role": ..., "content": text}}]'
            )


def _open_shards(folder: Path) -> datasets.Dataset:
    check_shards(folder)
    shards = sorted(map(str, folder.glob("*.parquet")))
    try:
        if not any(pq.read_metadata(shard).num_rows for shard in shards):
            raise MfpoError(f"{folder}: holds no records; build it again")
        return datasets.Dataset.from_parquet(shards)
    except (pa.ArrowInvalid, datasets.exceptions.DatasetGenerationError) as error:
        reason = first_line(error.__cause__ or error)
        raise MfpoError(f"{folder}: its Parquet shards cannot be read ({reason}); build it again") from None


def _holds_null(values: pa.ChunkedArray) -> pa.Array:
    """Whether a list in a row holds a null, or a message without content."""
    values = values.combine_chunks()
    entries = pc.list_flatten(values)
    is_null = pc.is_null(entries)
    if entries.type.get_field_index("content") >= 0:
        is_null = pc.or_(is_null, pc.is_null(pc.struct_field(entries, "content")))
    rows = pc.list_parent_indices(values).filter(is_null)
    return pc.is_in(pa.array(range(len(values)), rows.type), rows)


def _refuse(is_wrong: pa.Array | pa.ChunkedArray, where: str, start: int, fault: str) -> None:
    """Raise MfpoError that names the first row that is wrong; `start` is the number of the first."""
    row = pc.index(is_wrong, True).as_py()
    if row >= 0:
        raise MfpoError(f"{where}, row {start + row}: {fault}")


def column(dataset: datasets.Dataset, name: str) -> list[Any]:
    """A whole column as a list, without decoding the images of the others."""
    return list(dataset.select_columns([name])[name])


def dataset_hash(data: Path | datasets.Dataset) -> str:
    """A hash of a folder's shards, or of all that a dataset in memory holds, however it was made."""
    if isinstance(data, Path):
        return fingerprint(data, "*.parquet")
    digest = hashlib.sha256()
    for table in data.with_format("arrow").iter(batch_size=32):
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
