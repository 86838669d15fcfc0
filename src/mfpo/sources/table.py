"""The base class of every format: rows of files, one pair of answers per row."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import datasets

from mfpo.dataset import dataset_hash
from mfpo.errors import RecordError
from mfpo.folders import file_states
from mfpo.records import Message, Origin, SourceRecord, answer_text, new_record, place_images
from mfpo.sources.files import check_row, dataset_rows, read_rows
from mfpo.sources.rows import (
    either,
    is_missing,
    read_claims,
    read_counter,
    read_images,
    read_objects,
    read_rejected_images,
)


class Pair(NamedTuple):
    prompt: list[Message]
    chosen: str
    rejected: str


class TableSource(ABC):
    """The rows of files or of a dataset in memory, their images embedded or below `folder`; links may lead to `root`.

    In every format a row may have its own masks in `objects`, rejected images in `rejected_images` and the right answer
    to them in `counter`.
    """

    format: ClassVar[str]
    """The name that `@source` gives."""
    columns: ClassVar[tuple[str, ...]]
    """Those that a file needs to have; of `a or b` one will do."""
    images: ClassVar[str] = "images"
    """The column of the images."""
    has_ids: ClassVar[bool] = True
    """Whether column `id`, or what stands for it, is unique in the published dataset. If not, rows go by number."""
    needs_folder: ClassVar[bool] = False
    """Whether the dataset is published without its images."""

    def __init__(
        self, name: str, rows: Sequence[Path] | datasets.Dataset, folder: Path, root: Path | None = None
    ) -> None:
        self.name = name
        self._rows = rows
        self._folder = folder
        self._root = root or folder
        self.left_out: list[str] = []
        """The splits, subsets and other files of the dataset that are not read."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        needed = [name for column in (*self.columns, self.images) for name in either(column)]
        names = ("id", "objects", "claims", "rejected_images", "counter", "image_path", "system", *needed)
        if isinstance(self._rows, datasets.Dataset):
            return dataset_rows(self._rows, names)
        return read_rows(self._rows, names)

    @property
    def provenance(self) -> dict[str, Any]:
        """The files by their size and time, or a dataset in memory by its content."""
        if isinstance(self._rows, datasets.Dataset):
            rows: dict[str, Any] = {"content": dataset_hash(self._rows)}
        else:
            rows = {"files": file_states(self._rows)}
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        return {"kind": kind, "name": self.name, "images": os.path.abspath(self._folder), **rows}

    def id(self, row: dict[str, Any], number: int) -> str:
        """The row's `id`, or its number where it has none."""
        row_id = row.get("id") if self.has_ids else None
        return str(number) if is_missing(row_id) or not isinstance(row_id, str | int | float) else str(row_id)

    def record(self, row: dict[str, Any], number: int) -> SourceRecord:
        """Raises RecordError for a broken line, a missing or empty column, and an image that cannot be read."""
        check_row(row)
        if self.has_ids and not isinstance(row.get("id"), str | int | float | None):
            raise RecordError(f"column 'id' is {type(row['id']).__name__}, but must be a string or a number")
        pair = self.pair(row)
        record = new_record(
            id=self.id(row, number),
            images=read_images(row, self.images, self._folder, self._root),
            question=answer_text(pair.prompt),
            chosen=pair.chosen,
            rejected=pair.rejected,
            objects=read_objects(row.get("objects")),
            claims=read_claims(row.get("claims")),
            rejected_images=read_rejected_images(row, self._folder, self._root),
            counter=read_counter(row),
            source=Origin(dataset=self.name, row=number),
        )
        record["prompt"] = place_images(pair.prompt, len(record["images"]))
        return record

    @abstractmethod
    def pair(self, row: dict[str, Any]) -> Pair:
        """The texts of a row. Raises RecordError that names the column at fault."""
