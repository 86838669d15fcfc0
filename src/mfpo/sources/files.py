"""Rows out of JSONL and Parquet files, one after the other."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mfpo.errors import MfpoError, RecordError

# The key of a row that could not be read, and holds why.
_UNREADABLE = "__unreadable__"


def data_files(path: Path) -> list[Path]:
    """`path` itself, or the Parquet files below it, or else the JSONL files below it, in order of their names."""
    if path.is_dir():
        files = sorted(path.rglob("*.parquet")) or sorted(path.rglob("*.jsonl"))
        if not files:
            raise MfpoError(f"{path}: no .parquet or .jsonl files there; give a file or a folder that has some")
        for file in files:
            _check_size(file)
        return files
    _check_size(path)
    return [path]


def _check_size(file: Path) -> None:
    if not file.is_file():
        raise MfpoError(f"{file}: no such file; give an existing .jsonl or .parquet file, or a folder of them")
    if file.stat().st_size == 0:
        raise MfpoError(f"{file}: the file is empty (0 bytes); was it downloaded whole?")


def columns_of(file: Path) -> set[str]:
    """The columns of a Parquet file, or those that the first 100 rows of a JSONL file have together."""
    if file.suffix == ".parquet":
        return set(_open_parquet(file).schema_arrow.names)
    columns = set().union(*islice(read_rows([file]), 100)) - {_UNREADABLE}
    if not columns:
        raise MfpoError(f"{file}: none of its first lines is a JSON object; give a file with one a line")
    return columns


def read_rows(files: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of all files, of Parquet files only `columns`. An unreadable line is a row that `check_row` refuses."""
    for file in files:
        if file.suffix == ".parquet":
            parquet = _open_parquet(file)
            wanted = [name for name in parquet.schema_arrow.names if columns is None or name in columns]
            for batch in parquet.iter_batches(batch_size=16, columns=wanted):
                yield from batch.to_pylist()
        else:
            with file.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield _parse(line, f"line {number} of {file.name}")


def check_row(row: dict[str, Any]) -> None:
    """Raise RecordError for a row that could not be read."""
    if _UNREADABLE in row:
        raise RecordError(row[_UNREADABLE])


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise MfpoError(f"{file}: no Parquet file ({str(error).splitlines()[0]})") from None


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        # Half a surrogate pair is valid JSON, but no text that a file could hold.
        json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        return {_UNREADABLE: f"{where} is not valid JSON ({error})"}
    return row if isinstance(row, dict) else {_UNREADABLE: f"{where} is not a JSON object"}
