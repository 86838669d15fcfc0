"""RLHF-V (openbmb/RLHF-V-Dataset): an embedded image, and `text` with question, chosen and rejected as JSON."""

from typing import Any

from mfpo.errors import RecordError
from mfpo.sources import source
from mfpo.sources.files import parse_json
from mfpo.sources.rows import read_answer, read_prompt
from mfpo.sources.table import Pair, TableSource


@source("rlhf-v")
class RlhfVSource(TableSource):
    columns = ("ds_name or dataset_name", "image", "text")
    images = "image"
    has_ids = False  # `idx` counts within one `origin_split`, as its first name, origin_split_inner_idx, says

    def pair(self, row: dict[str, Any]) -> Pair:
        text = row.get("text")
        if text is None:
            raise RecordError("column 'text' is missing")
        if isinstance(text, str):
            text = parse_json(text, "column 'text'")
        if not isinstance(text, dict):  # the JSONL of 2023 has the object itself
            raise RecordError("column 'text' must be a JSON object with question, chosen and rejected")
        return Pair(read_prompt(text, "question"), read_answer(text, "chosen"), read_answer(text, "rejected"))
