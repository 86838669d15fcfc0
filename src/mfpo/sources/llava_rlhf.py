"""LLaVA-RLHF's human preferences (zhiqings/LLaVA-Human-Preference-10K): two outputs, and which one was preferred.

`conversations` ends with LLaVA-Instruct's own answer, which both outputs stand in for.
"""

from typing import Any

from mfpo.errors import RecordError, brief
from mfpo.sources import source
from mfpo.sources.rows import check_prompt, read_answer, read_messages
from mfpo.sources.table import Pair, TableSource


@source("llava-rlhf")
class LlavaRlhfSource(TableSource):
    columns = ("image", "conversations", "output_1", "output_2", "preference")
    images = "image"
    has_ids = False  # LLaVA-Instruct's id is that of the image, and an image has several questions
    needs_folder = True

    def pair(self, row: dict[str, Any]) -> Pair:
        prompt = read_messages(row, "conversations", role="user")
        if prompt and prompt[-1]["role"] == "assistant":
            prompt.pop()
        outputs = [read_answer(row, "output_1"), read_answer(row, "output_2")]
        preference = row.get("preference")
        if isinstance(preference, bool) or preference not in (1, 2):
            raise RecordError(f"preference is {brief(preference)}, but must be 1 or 2")
        chosen, rejected = outputs if preference == 1 else reversed(outputs)
        return Pair(check_prompt(prompt, "conversations"), chosen, rejected)
