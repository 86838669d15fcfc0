"""Claims by CHAIR's reading: the COCO classes that an answer names, against annotations (as CHAIR-DPO)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mfpo.errors import RecordError, brief
from mfpo.folders import file_states
from mfpo.pairs.check import FALSE, TRUE, Claim, Shown, Tools, checker
from mfpo.truth import load_annotations


@checker("coco")
class CocoCheck:
    """COCO instances JSON, or JSONL with `image_id` and `objects`. Raises MfpoError as `load_annotations`."""

    def __init__(self, where: str, tools: Tools) -> None:
        self._truth = load_annotations(Path(where))
        self._file = where
        self.provenance: Any = {"coco": file_states([Path(where)])}

    def __call__(self, answers: Sequence[Shown]) -> list[tuple[Claim, ...] | RecordError]:
        """The objects that each answer names; a RecordError for an image without annotations."""
        return [self._check(answer) for answer in answers]

    def _check(self, answer: Shown) -> tuple[Claim, ...] | RecordError:
        try:
            key = self._truth.find(answer.asked.image_name)
        except RecordError as error:
            return error
        if key is None:
            return RecordError(f"image {brief(answer.asked.image_name)} is not among the images of {self._file}")
        return object_claims(answer.text, self._truth[key])


def object_claims(text: str, truth: frozenset[str]) -> tuple[Claim, ...]:
    """The COCO objects that `text` names, as CHAIR reads it; what it says is not there is no claim.

    >>> [(claim.object, claim.verdict) for claim in object_claims("A dog, a cat, but no bird.", frozenset(["dog"]))]
    [('dog', 'true'), ('cat', 'false')]
    """
    from mfpo.objects import is_denied, mentions

    return tuple(
        Claim(mention.start, mention.end, mention.category, TRUE if mention.category in truth else FALSE)
        for mention in mentions(text)
        if not is_denied(text, mention.start, mention.end)
    )
