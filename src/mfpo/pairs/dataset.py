"""Claims as in coco.py, against the `objects` that a question brings."""

from collections.abc import Sequence

from mfpo.errors import MfpoError, RecordError
from mfpo.pairs.check import CHOICES, Claim, Shown, Tools, checker
from mfpo.pairs.coco import object_claims


@checker("dataset")
class DatasetCheck:
    """The names in a question's `objects`, by their COCO class."""

    provenance = "dataset"

    def __init__(self, where: str, tools: Tools) -> None:
        pass

    def __call__(self, answers: Sequence[Shown]) -> list[tuple[Claim, ...] | RecordError]:
        """The objects that each answer names. Raises MfpoError for a question without `objects`."""
        from mfpo.class_names import class_of

        found: list[tuple[Claim, ...] | RecordError] = []
        for asked, text in answers:
            if asked.objects is None:
                raise MfpoError(f"question {asked.id} brings no objects to check answers by; {CHOICES}")
            found.append(object_claims(text, frozenset(filter(None, map(class_of, asked.objects)))))
        return found
