"""Where preference data comes from: one file a public format, each giving the same records."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from mfpo.errors import MfpoError, brief
from mfpo.hub import is_hub_name
from mfpo.records import SourceRecord
from mfpo.sources.files import check_file, columns_of, download_dataset
from mfpo.sources.jsonl import JsonlSource
from mfpo.sources.llama_factory import LlamaFactorySource
from mfpo.sources.llava_rlhf import LlavaRlhfSource
from mfpo.sources.ms_swift import MsSwiftSource
from mfpo.sources.rlaif_v import RlaifVSource
from mfpo.sources.rlhf_v import RlhfVSource
from mfpo.sources.rows import either
from mfpo.sources.splits import choose_files
from mfpo.sources.table import TableSource
from mfpo.sources.trl import TrlSource
from mfpo.sources.vlfeedback import VLFeedbackSource


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


# A file may have the columns of several; the first that fits is taken, so one dataset's own columns come before those
# that anybody's file may have.
_KINDS: tuple[type[TableSource], ...] = (
    RlhfVSource,
    RlaifVSource,
    VLFeedbackSource,
    LlavaRlhfSource,
    MsSwiftSource,
    LlamaFactorySource,
    TrlSource,
    JsonlSource,
)
FORMATS = tuple(kind.format for kind in _KINDS)


def open_source(
    path: str | Path,
    *,
    format: str | None = None,
    images: Path | None = None,
    split: str | None = None,
    subset: str | None = None,
) -> Source:
    """The preference data at `path`: a Parquet, JSONL or JSON file, a folder of either, or a dataset `owner/name`.

    `format` is one of FORMATS, or found out from the columns. `images` is the folder that image paths are relative to;
    without it, that of the file. Of a folder or dataset only `split` is read, by default train, and of several subsets
    (configurations) only `subset`, by default the one that is called or marked default.
    Raises MfpoError when the file is missing or empty, when there is no such split or subset, when the columns are
    those of no format, or when the format brings no images and `images` is not given.
    """
    if format not in (None, *FORMATS):
        raise MfpoError(f"no format is named {brief(format)}; give --format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    is_download = is_hub_name(str(path))
    place = download_dataset(str(path)) if is_download else Path(path)
    files, left_out = choose_files(place, split, subset)
    for file in files:
        check_file(file)
    folder = images or files[0].parent
    if not folder.is_dir():
        raise MfpoError(f"{folder}: no such folder; give the image folder with --images")
    kind = _find_kind(files[0], format)
    if kind.needs_folder and images is None:
        raise MfpoError(f"{path}: {kind.format} comes without its images; give their folder with --images")
    # In the hub's cache a file is a link out of snapshots/REVISION into the dataset's blobs.
    root = place.parents[1] if is_download and images is None else folder
    source = kind(str(path) if is_download else place.name, files, folder, root)
    source.left_out = left_out
    return source


def _find_kind(file: Path, format: str | None) -> type[TableSource]:
    kinds = [kind for kind in _KINDS if format in (None, kind.format)]
    found = columns_of(file)
    for kind in kinds:
        if all(found.intersection(either(column)) for column in kind.columns):
            return kind
    # Of those that fit equally well, the last is anybody's.
    nearest = max(reversed(kinds), key=lambda kind: sum(bool(found.intersection(either(c))) for c in kind.columns))
    which = f"format {format}" if format else f"{nearest.format}, the nearest format,"
    lacking = ", ".join(column for column in nearest.columns if not found.intersection(either(column)))
    names = ", ".join(name[:40] for name in sorted(found)[:6]) + f" and {len(found) - 6} more" * (len(found) > 6)
    raise MfpoError(
        f"{file}: columns {names or 'none'}, but {which} also needs {lacking}; docs/sources.md lists all formats"
    )
