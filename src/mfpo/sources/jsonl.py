"""Plain JSONL: one object a line with `id`, `image` (a path, or a list of them), `question`, `chosen`, `rejected`."""

from typing import Any

from mfpo.errors import RecordError
from mfpo.sources import source
from mfpo.sources.rows import is_missing, read_answer, read_prompt
from mfpo.sources.table import Pair, TableSource


@source("jsonl")
class JsonlSource(TableSource):
    columns = ("id", "image", "question", "chosen", "rejected")
    images = "image"

    def pair(self, row: dict[str, Any]) -> Pair:
        if is_missing(row.get("id")):
            raise RecordError("column 'id' is missing")
        return Pair(read_prompt(row, "question"), read_answer(row, "chosen"), read_answer(row, "rejected"))
