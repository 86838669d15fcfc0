"""Rows of Parquet, JSONL and JSON files, from disk or downloaded from the Hub."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from mfpo.errors import MfpoError, RecordError, first_line
from mfpo.files import Entry, beginning, stream_rows
from mfpo.hub import DATA_FILES, IMAGE_FILES

# The key of a row that could not be read, and holds why.
_UNREADABLE = "__unreadable__"
# What `mfpo pairs` and `mfpo build` write beside their records, about the rows that did not become any.
_REPORTS = ("left_out.jsonl", "rejected_rows.jsonl")


def download_dataset(name: str) -> Path:
    """The folder of the hub's dataset `owner/name`: its card, tables and images, no code. Raises MfpoError without."""
    patterns = ["*" + suffix for suffix in (*DATA_FILES, *IMAGE_FILES, *map(str.upper, IMAGE_FILES))]
    patterns.append("README.md")  # says which files are which split
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except (OSError, HfHubHTTPError) as error:
        raise MfpoError(
            f"{name}: no such file or folder, and it could not be downloaded from the Hub ({first_line(error)})"
        ) from None


def data_files(folder: Path) -> list[Path]:
    """The Parquet, JSONL and JSON files below `folder`, in order of their names; of JSON files those with an array.

    A .json file without one is mostly a description that lies beside the data. What a program hides (`.git`,
    `__MACOSX`) is left out, as by `datasets`, and so are mfpo's own reports. Raises MfpoError where there are none.
    """
    candidates = sorted(file for file in folder.rglob("*") if file.name.endswith(DATA_FILES) and file.is_file())
    seen = [file for file in candidates if not (_is_hidden(file.relative_to(folder)) or _is_report(file))]
    files = [file for file in seen if ".json" not in file.suffixes or beginning(file).startswith("[")]
    if not files:
        raise MfpoError(
            f"{folder}: no .parquet or .jsonl files and no .json array there; give a file, or a folder of them"
        )
    return files


def _is_hidden(file: Path) -> bool:
    return any(part.startswith((".", "__")) for part in file.parts)


def _is_report(file: Path) -> bool:
    return file.name in _REPORTS and file.with_name("made_by.json").is_file()


def of_one_kind(files: Sequence[Path]) -> list[Path]:
    """The Parquet files among `files`; where there are none the JSONL files, else all."""
    parquet = [file for file in files if file.suffix == ".parquet"]
    return parquet or [file for file in files if ".jsonl" in file.suffixes] or list(files)


# How files begin that are no tables, and what to do about it.
_OTHER_FILES = {
    b"version https://git-lfs": "is the pointer that Git LFS leaves in place of a file; fetch it with `git lfs pull`",
    b"<": "is a page of HTML or XML, as a server sends instead of a file; download it again",
    b"PK\x03\x04": "is a zip archive; unpack it, and give what was in it",
    b"\xff\xfe": "is in UTF-16; save it as UTF-8",
    b"\xfe\xff": "is in UTF-16; save it as UTF-8",
}


def check_file(file: Path) -> None:
    """Raise MfpoError when `file` is missing or empty, or begins as no table does."""
    if not file.is_file():
        raise MfpoError(f"{file}: no such file; give an existing .jsonl, .json or .parquet file, or a folder of them")
    with file.open("rb") as opened:
        start = opened.read(100)
    if not start:
        raise MfpoError(f"{file}: the file is empty (0 bytes); was it downloaded whole?")
    for begin, fault in _OTHER_FILES.items():
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(begin):
            raise MfpoError(f"{file}: {fault}")
    for suffix, begin in ((".parquet", b"PAR1"), (".gz", b"\x1f\x8b")):
        if start.startswith(begin) and file.suffix != suffix:
            raise MfpoError(f"{file}: is a {suffix} file; give it a name that ends in {suffix}")
    if file.suffix == ".gz" and not start.startswith(b"\x1f\x8b"):
        raise MfpoError(f"{file}: is not gzipped; give it a name without .gz")


def columns_of(file: Path) -> set[str]:
    """The columns of a Parquet file, or those that the first 100 rows of another have together."""
    if file.suffix == ".parquet":
        return set(_open_parquet(file).schema_arrow.names)
    rows = list(islice(read_rows([file]), 100))
    columns = set().union(*rows) - {_UNREADABLE}
    if not columns:
        why = f" ({rows[0][_UNREADABLE]})" if rows and rows[0] else ""
        raise MfpoError(f"{file}: none of its first rows is a JSON object{why}; give {_one_a_line(file)}")
    return columns


def _one_a_line(file: Path) -> str:
    """What to give in place of a file without a JSON object on any line."""
    if beginning(file).startswith("{"):
        return "each object on a line of its own, or a JSON array of them"
    return "a file with one JSON object a line, or a JSON array; CSV and TSV files are not read"


def read_rows(files: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of all files, of Parquet files only `columns`. An unreadable one is a row that `check_row` refuses.

    Parquet and JSONL stream; a JSON array is read whole. Raises MfpoError when the rest of a file cannot be read.
    """
    for file in files:
        if file.suffix == ".parquet":
            yield from _parquet_rows(file, columns)
        else:
            yield from (_json_row(entry, file) for entry in stream_rows(file))


def dataset_rows(dataset: datasets.Dataset, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a dataset in memory, only `columns`; images stay encoded, as they lie in it."""
    names = [name for name in dataset.column_names if name in columns]
    for table in dataset.select_columns(names).with_format("arrow").iter(batch_size=16):
        yield from table.to_pylist()


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


def _json_row(entry: Entry, file: Path) -> dict[str, Any]:
    place, row, fault = entry
    if row is not None:
        try:
            _check_text(row)
            return row
        except (ValueError, RecursionError) as error:
            fault = f"is not valid JSON ({error})"
    return {_UNREADABLE: f"{place} of {file.name} {fault}"}


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        # Read page by page: a published file may be one group of rows, gigabytes of images.
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    except (pa.ArrowException, OSError) as error:
        raise MfpoError(f"{file}: not a Parquet file ({first_line(error)})") from None


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
