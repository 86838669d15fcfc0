"""Where preference data comes from: one file a public format, each giving the same records."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from mfpo.errors import MfpoError
from mfpo.records import SourceRecord


class Source(Protocol):
    name: str
    """What `record["source"]["dataset"]` says."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The raw rows in order, cheap to read; a row that cannot be read is one that `record` refuses."""
        ...

    def id(self, row: dict[str, Any], number: int) -> str:
        """The id that the row's record would have, without reading its images; never raises."""
        ...

    def record(self, row: dict[str, Any], number: int) -> SourceRecord:
        """Row number `number`, from 0, as a record. Raises RecordError when it cannot be one."""
        ...


FORMATS = ("jsonl", "trl")


def open_source(path: Path, *, format: str | None = None, images: Path | None = None) -> Source:
    """The preference data at `path`: a JSONL file, a Parquet file, or a folder of either.

    `format` is one of FORMATS, or found out from the columns. `images` is the folder that image paths are relative to;
    without it, that of the file.
    Raises MfpoError when the file is missing or empty, or when its columns are those of no format.
    """
    from mfpo.sources.files import columns_of, data_files
    from mfpo.sources.jsonl import JsonlSource
    from mfpo.sources.trl import TrlSource

    if format not in (None, *FORMATS):
        raise MfpoError(f"no format is named {format!r}; give --format {' or '.join(FORMATS)}")
    files = data_files(path)
    folder = images or files[0].parent
    if not folder.is_dir():
        raise MfpoError(f"{folder}: no such folder; give the image folder with --images")
    found = columns_of(files[0])
    for kind in (JsonlSource, TrlSource):
        if format in (None, kind.format) and found >= set(kind.columns):
            return kind(path, files, folder)
    needed = "; ".join(
        f"{kind.format}: {', '.join(kind.columns)}"
        for kind in (JsonlSource, TrlSource)
        if format in (None, kind.format)
    )
    raise MfpoError(f"{files[0]}: columns {', '.join(sorted(found)) or 'none'}, but needed are ({needed})")
