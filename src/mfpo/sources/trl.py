"""TRL's vision preference format: `images`, `prompt`, `chosen`, `rejected`, as messages or as plain texts."""

from typing import Any

from mfpo.sources import source
from mfpo.sources.rows import read_answer, read_prompt
from mfpo.sources.table import Pair, TableSource


@source("trl")
class TrlSource(TableSource):
    columns = ("images", "prompt", "chosen", "rejected")

    def pair(self, row: dict[str, Any]) -> Pair:
        return Pair(read_prompt(row, "prompt"), read_answer(row, "chosen"), read_answer(row, "rejected"))
