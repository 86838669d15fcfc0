"""The source that every format is: rows out of files, one pair of answers a row."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from mfpo.errors import RecordError
from mfpo.records import Message, Origin, SourceRecord, answer_text, new_record, place_images
from mfpo.sources.files import check_row, read_rows
from mfpo.sources.rows import either, read_images, read_objects


class Pair(NamedTuple):
    prompt: list[Message]
    chosen: str
    rejected: str


class TableSource(ABC):
    """The rows of `files`, their images embedded or below `folder`; links may lead as far as `root`.

    In every format a row may have `objects`, the masks that it brings.
    """

    format: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    """Those that a file needs to have; of `a or b` one will do."""
    images: ClassVar[str] = "images"
    """The column of the images."""
    has_ids: ClassVar[bool] = True
    """Whether column `id`, or what stands for it, is unique in the published dataset. If not, rows go by number."""
    needs_folder: ClassVar[bool] = False
    """Whether the dataset is published without its images."""

    def __init__(self, name: str, files: Sequence[Path], folder: Path, root: Path | None = None) -> None:
        self.name = name
        self._files = files
        self._folder = folder
        self._root = root or folder
        self.left_out: list[str] = []
        """The splits, subsets and other files of the dataset that are not read."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        needed = [name for column in (*self.columns, self.images) for name in either(column)]
        return read_rows(self._files, ("id", "objects", "image_path", "system", *needed))

    def id(self, row: dict[str, Any], number: int) -> str:
        """The row's `id`, or its number where it has none."""
        given = row.get("id") if self.has_ids else None
        return str(number) if given == "" or not isinstance(given, str | int | float) else str(given)

    def record(self, row: dict[str, Any], number: int) -> SourceRecord:
        """Raises RecordError for a broken line, a missing or empty column, and an image that cannot be read."""
        check_row(row)
        if self.has_ids and not isinstance(row.get("id"), str | int | float | None):
            raise RecordError(f"column 'id' is {type(row['id']).__name__}, but must be a text or a number")
        pair = self.pair(row)
        record = new_record(
            id=self.id(row, number),
            images=read_images(row, self.images, self._folder, self._root),
            question=answer_text(pair.prompt),
            chosen=pair.chosen,
            rejected=pair.rejected,
            objects=read_objects(row.get("objects")),
            source=Origin(dataset=self.name, row=number),
        )
        record["prompt"] = place_images(pair.prompt, len(record["images"]))
        return record

    @abstractmethod
    def pair(self, row: dict[str, Any]) -> Pair:
        """The texts of a row. Raises RecordError that names the column at fault."""
