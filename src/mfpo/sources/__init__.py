"""Sources of preference data: one file per public format, all producing the same records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mfpo.errors import MfpoError
from mfpo.files import some
from mfpo.hub import is_hub_name
from mfpo.registry import Registry

if TYPE_CHECKING:
    import datasets

    from mfpo.records import SourceRecord
    from mfpo.sources.table import TableSource

    Kind = TypeVar("Kind", bound=type[TableSource])

# A file may have the columns of several; the first that fits is taken, so one dataset's own columns come before those
# that anybody's file may have.
FORMATS = ("rlhf-v", "rlaif-v", "vlfeedback", "llava-rlhf", "ms-swift", "llama-factory", "trl", "jsonl")
SOURCES: Registry[type[TableSource]] = Registry("format", "mfpo.sources", FORMATS)


def source(name: str) -> Callable[[Kind], Kind]:
    """Register a `TableSource` as the format `name`, which is tried before those of the package."""

    def add(kind: Kind) -> Kind:
        kind.format = name
        SOURCES.add(name, kind)
        return kind

    return add


class Source(Protocol):
    """Rows that become records. A `provenance`, if it has one, tells it apart from others (`folders.provenance_of`)."""

    name: str
    """What `record["source"]["dataset"]` says."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The raw rows in order, cheap to read; `record` refuses an unreadable row."""
        ...

    def id(self, row: dict[str, Any], number: int) -> str:
        """The id that the row's record would have, without reading its images; never raises."""
        ...

    def record(self, row: dict[str, Any], number: int) -> SourceRecord:
        """Row number `number`, from 0, as a record. Raises RecordError when it cannot be one."""
        ...


def open_source(
    data: str | Path | datasets.Dataset,
    *,
    format: str | None = None,
    images: str | Path | None = None,
    split: str | None = None,
    subset: str | None = None,
) -> Source:
    """The preference data at a path (a Parquet, JSONL or JSON file, a folder of either, or a dataset `owner/name`), or
    in a dataset in memory.

    `format` is one of SOURCES, or detected from the columns. `images` is the folder that image paths are relative to;
    without it, that of the file, or for a dataset in memory the working directory. Of a folder or `owner/name` only
    `split` is read, by default train, and of several subsets (configurations) only `subset`, by default the one that is
    called or marked default.
    Raises MfpoError when the file is missing or empty, when there is no such split or subset, when the columns
    match no format, or when the format has no images and `images` is not given.
    """
    images = None if images is None else Path(images)
    if format is not None:
        SOURCES[format]  # raises for an unknown name
    if not isinstance(data, str | Path):
        if not hasattr(data, "features") or isinstance(data.column_names, dict):
            raise MfpoError(
                f"the source is a {type(data).__name__}; give a path, or a datasets.Dataset, such as one split"
            )
        if split or subset:
            raise MfpoError("split and subset choose files, and a dataset in memory has none; select its rows instead")
        kind = _find_kind("the dataset", set(data.column_names), format)
        return kind("dataset", data, images or Path.cwd(), images or Path("/"))
    # pyarrow and the hub's client take half a second, and the registry should be had without them
    from mfpo.sources.files import check_file, columns_of, download_dataset
    from mfpo.sources.splits import choose_files

    is_download = is_hub_name(str(data))
    place = download_dataset(str(data)) if is_download else Path(data)
    files, left_out = choose_files(place, split, subset)
    for file in files:
        check_file(file)
    folder = images or files[0].parent
    if not folder.is_dir():
        raise MfpoError(f"{folder}: no such folder; give the image folder with --images")
    kind = _find_kind(str(files[0]), columns_of(files[0]), format)
    if kind.needs_folder and images is None:
        raise MfpoError(f"{data}: {kind.format} has no images of its own; give their folder with --images")
    # In the hub's cache a file is a link out of snapshots/REVISION into the dataset's blobs.
    root = place.parents[1] if is_download and images is None else folder
    opened = kind(str(data) if is_download else place.name, files, folder, root)
    opened.left_out = left_out
    return opened


def _find_kind(where: str, columns: set[str], format: str | None) -> type[TableSource]:
    """The first format whose columns are all there. Raises MfpoError that names what the nearest one lacks."""
    from mfpo.sources.rows import either

    def lacking(kind: type[TableSource]) -> list[str]:
        return [column for column in kind.columns if not columns.intersection(either(column))]

    names = [format] if format else [*(name for name in SOURCES if name not in FORMATS), *FORMATS]
    kinds = [SOURCES[name] for name in names]
    for kind in kinds:
        if not lacking(kind):
            return kind
    # Of those that fit equally well, the last is anybody's.
    nearest = max(reversed(kinds), key=lambda kind: len(kind.columns) - len(lacking(kind)))
    which = f"format {format}" if format else f"{nearest.format}, the nearest format,"
    raise MfpoError(
        f"{where}: columns {some(sorted(columns)) or 'none'}, but {which} also needs {', '.join(lacking(nearest))}; "
        "docs/sources.md lists all formats"
    )
