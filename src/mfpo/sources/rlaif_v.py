"""RLAIF-V (openbmb/RLAIF-V-Dataset): an embedded image, and `question`, `chosen`, `rejected` as texts."""

from typing import Any

from mfpo.sources import source
from mfpo.sources.rows import read_answer, read_prompt
from mfpo.sources.table import Pair, TableSource


@source("rlaif-v")
class RlaifVSource(TableSource):
    columns = ("ds_name", "image", "question", "chosen", "rejected")
    images = "image"
    has_ids = False  # `idx` is nowhere said to be unique

    def pair(self, row: dict[str, Any]) -> Pair:
        return Pair(read_prompt(row, "question"), read_answer(row, "chosen"), read_answer(row, "rejected"))
