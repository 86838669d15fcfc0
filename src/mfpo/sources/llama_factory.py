"""LLaMA-Factory's ranking ShareGPT format: `conversations` or `messages` before the answer, `chosen`, `rejected`.

A system prompt may have a column of its own, `system`.
"""

from typing import Any

from mfpo.sources import source
from mfpo.sources.rows import read_answer, read_messages, read_prompt
from mfpo.sources.table import Pair, TableSource


@source("llama-factory")
class LlamaFactorySource(TableSource):
    columns = ("conversations or messages", "chosen", "rejected", "images")

    def pair(self, row: dict[str, Any]) -> Pair:
        prompt = read_prompt(row, "conversations or messages")
        if row.get("system"):
            prompt = [*read_messages(row, "system", role="system"), *prompt]
        return Pair(prompt, read_answer(row, "chosen"), read_answer(row, "rejected"))
