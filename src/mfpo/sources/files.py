"""Rows out of Parquet, JSONL and JSON files, one after the other; from disk, or downloaded from the hub."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from mfpo.errors import MfpoError, RecordError, first_line

# The key of a row that could not be read, and holds why.
_UNREADABLE = "__unreadable__"
_DATA_FILES = (".parquet", ".jsonl", ".json")
_IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def is_hub_name(name: str) -> bool:
    """Whether `name` is the hub's `owner/name`, and nothing on this disk."""
    is_name = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not name.endswith(_DATA_FILES)
    return bool(is_name) and not Path(name).exists()


def download_dataset(name: str) -> Path:
    """The folder of the hub's dataset `owner/name`: its tables and images, no code. Raises MfpoError without it."""
    patterns = ["*" + suffix for suffix in (*_DATA_FILES, *_IMAGE_FILES, *map(str.upper, _IMAGE_FILES))]
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except (OSError, HfHubHTTPError) as error:
        raise MfpoError(
            f"{name}: no such file or folder, and not to be had from the hub ({first_line(error)})"
        ) from None


def data_files(path: Path) -> list[Path]:
    """`path` itself, or the files below it in order of their names: the Parquet files, else JSONL, else JSON arrays.

    A .json file without an array is none of them, as a dataset's description lies beside its data.
    """
    if not path.is_dir():
        _check_size(path)
        return [path]
    found = (sorted(file for file in path.rglob("*" + suffix) if file.is_file()) for suffix in _DATA_FILES)
    parquet, jsonl, arrays = found
    files = parquet or jsonl or [file for file in arrays if _is_array(file)]
    if not files:
        raise MfpoError(
            f"{path}: no .parquet or .jsonl files and no .json array there; give a file, or a folder of them"
        )
    for file in files:
        _check_size(file)
    return files


def _check_size(file: Path) -> None:
    if not file.is_file():
        raise MfpoError(f"{file}: no such file; give an existing .jsonl, .json or .parquet file, or a folder of them")
    if file.stat().st_size == 0:
        raise MfpoError(f"{file}: the file is empty (0 bytes); was it downloaded whole?")


def columns_of(file: Path) -> set[str]:
    """The columns of a Parquet file, or those that the first 100 rows of another have together."""
    if file.suffix == ".parquet":
        return set(_open_parquet(file).schema_arrow.names)
    columns = set().union(*islice(read_rows([file]), 100)) - {_UNREADABLE}
    if not columns:
        raise MfpoError(f"{file}: none of its first rows is a JSON object; give a file with one a line, or an array")
    return columns


def read_rows(files: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of all files, of Parquet files only `columns`. An unreadable one is a row that `check_row` refuses.

    Parquet and JSONL stream; a JSON array is read whole. Raises MfpoError when the rest of a file cannot be read.
    """
    for file in files:
        if file.suffix == ".parquet":
            yield from _parquet_rows(file, columns)
        elif _is_array(file):
            yield from _array_rows(file)
        else:
            with file.open("rb") as lines:
                if lines.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                    raise MfpoError(f"{file}: is in UTF-16; save it as UTF-8")
                lines.seek(0)
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield _row(line, f"line {number} of {file.name}")


def check_row(row: dict[str, Any]) -> None:
    """Raise RecordError for a row that could not be read."""
    if _UNREADABLE in row:
        raise RecordError(row[_UNREADABLE])


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON text. Raises RecordError when it is none, or holds what no file could."""
    try:
        value = json.loads(text)
        _check_text(value)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where} is not valid JSON ({error})") from None
    return value


def _check_text(value: Any) -> None:
    # Half a surrogate pair is valid JSON, but no text that a file could hold.
    json.dumps(value, ensure_ascii=False).encode()


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line, where)
    except RecordError as error:
        return {_UNREADABLE: str(error)}
    return row if isinstance(row, dict) else {_UNREADABLE: f"{where} is not a JSON object"}


def _is_array(file: Path) -> bool:
    if file.suffix != ".json":
        return False
    with file.open("rb") as start:
        return start.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _array_rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        rows = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise MfpoError(f"{file}: not valid JSON ({error}); was it downloaded whole?") from None
    for number, row in enumerate(rows):
        where = f"item {number} of {file.name}"
        try:
            _check_text(row)
        except ValueError as error:
            row = {_UNREADABLE: f"{where} is not valid JSON ({error})"}
        yield row if isinstance(row, dict) else {_UNREADABLE: f"{where} is not a JSON object"}


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        # Read page by page: a published file may be one group of rows, gigabytes of images.
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    except (pa.ArrowException, OSError) as error:
        raise MfpoError(f"{file}: no Parquet file ({first_line(error)})") from None


def _parquet_rows(file: Path, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    parquet = _open_parquet(file)
    wanted = [name for name in parquet.schema_arrow.names if columns is None or name in columns]
    number = 0
    try:
        for batch in parquet.iter_batches(batch_size=16, columns=wanted):
            for index in range(batch.num_rows):
                yield _arrow_row(batch, index, f"row {number} of {file.name}")
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise MfpoError(f"{file}: broken after {number} rows ({first_line(error)}); was it downloaded whole?") from None


def _arrow_row(batch: pa.RecordBatch, index: int, where: str) -> dict[str, Any]:
    try:
        return {name: batch.column(name)[index].as_py() for name in batch.schema.names}
    except ValueError as error:  # a text that is no UTF-8, a time that Python cannot hold
        return {_UNREADABLE: f"{where} cannot be read ({error})"}
