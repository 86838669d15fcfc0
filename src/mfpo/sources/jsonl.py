"""Plain JSONL: one object a line with `id`, `image` (a path), `question`, `chosen` and `rejected`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mfpo.errors import RecordError
from mfpo.records import Origin, SourceRecord, load_image, new_record
from mfpo.sources.files import check_row, read_rows


class JsonlSource:
    """The rows of JSONL `files`, their images below `folder`."""

    format = "jsonl"
    columns = ("id", "image", "question", "chosen", "rejected")

    def __init__(self, path: Path, files: Sequence[Path], folder: Path) -> None:
        self.name = path.name
        self._files = files
        self._folder = folder

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return read_rows(self._files, self.columns)

    def record(self, row: dict[str, Any], number: int) -> SourceRecord:
        """Raises RecordError for a broken line, a missing or empty column, and an image that cannot be read."""
        check_row(row)
        if row.get("id") in (None, ""):
            raise RecordError("column 'id' is missing")
        return new_record(
            id=row["id"],
            images=[load_image(self._folder, row.get("image"))],
            question=row.get("question"),
            chosen=row.get("chosen"),
            rejected=row.get("rejected"),
            source=Origin(dataset=self.name, row=number),
        )
