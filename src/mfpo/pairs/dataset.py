"""Claims as in coco.py, against the `objects` that a question brings."""

from collections.abc import Sequence

from mfpo.errors import RecordError
from mfpo.pairs.check import Claim, Shown, Tools, checker
from mfpo.pairs.coco import object_claims


@checker("dataset")
class DatasetCheck:
    """The names in a question's `objects`, by their COCO class."""

    provenance = "dataset"

    def __init__(self, where: str, tools: Tools) -> None:
        pass

    def __call__(self, answers: Sequence[Shown]) -> list[tuple[Claim, ...] | RecordError]:
        """The objects that each answer names; a RecordError for a question without `objects`."""
        from mfpo.class_names import class_of

        return [
            RecordError("the question brings no objects to check answers by; give them, or another --check")
            if asked.objects is None
            else object_claims(text, frozenset(filter(None, map(class_of, asked.objects))))
            for asked, text in answers
        ]
