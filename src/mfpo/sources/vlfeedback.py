"""VLFeedback, which Silkie learned from (MMInstruction/VLFeedback): four answers a prompt, each rated by GPT-4V.

The chosen answer is the one with the best mean rating, the rejected one that with the worst; the first of equals.
"""

import math
from typing import Any

from mfpo.errors import RecordError, brief
from mfpo.sources import source
from mfpo.sources.rows import read_answer, read_prompt
from mfpo.sources.table import Pair, TableSource


@source("vlfeedback")
class VLFeedbackSource(TableSource):
    columns = ("prompt", "completions", "image or img_path")
    images = "image or img_path"

    def pair(self, row: dict[str, Any]) -> Pair:
        prompt = read_prompt(row, "prompt")
        completions = read_completions(row.get("completions"))
        ratings = [_mean_rating(completion, number) for number, completion in enumerate(completions)]
        if max(ratings) == min(ratings):
            raise RecordError("all completions have the same mean rating")
        best, worst = (completions[ratings.index(mean)] for mean in (max(ratings), min(ratings)))
        return Pair(prompt, read_answer(best, "response"), read_answer(worst, "response"))


def read_completions(value: Any) -> list[dict[str, Any]]:
    """The rated answers; `datasets` stores a list of them as an object of lists."""
    if isinstance(value, dict):
        annotations, responses = value.get("annotations"), value.get("response")
        if not isinstance(annotations, list) or not isinstance(responses, list) or len(annotations) != len(responses):
            raise RecordError("column 'completions' needs as many annotations as responses")
        value = [{"annotations": a, "response": r} for a, r in zip(annotations, responses, strict=True)]
    if not value:
        raise RecordError("column 'completions' is missing or empty")
    if not isinstance(value, list) or not all(isinstance(completion, dict) for completion in value):
        raise RecordError("column 'completions' must be a list of objects with annotations and response")
    return value


def _mean_rating(completion: dict[str, Any], number: int) -> float:
    annotations = completion.get("annotations")
    if not isinstance(annotations, dict) or not annotations:
        raise RecordError(f"completions[{number}] has no annotations")
    return sum(
        _rating(annotation, f"completions[{number}], {brief(name)}") for name, annotation in annotations.items()
    ) / len(annotations)


def _rating(annotation: Any, where: str) -> float:
    rating = annotation.get("Rating") if isinstance(annotation, dict) else None
    try:
        value = float(rating)  # type: ignore[arg-type]  # None is a TypeError like others
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise RecordError(f"{where}: rating {brief(rating)} is not a number")
    return value
