"""A checker that knows the picture book's truth and errs, as real checkers do."""

import hashlib
from collections.abc import Sequence

from mfpo.errors import RecordError
from mfpo.pairs.check import FALSE, TRUE, Claim, Shown
from mfpo.pairs.dataset import DatasetCheck


class BookCheck(DatasetCheck):
    """The book's truth, of whose verdicts a share is flipped, the same for the same claim in the same scene."""

    def __init__(self, share: float) -> None:
        self._share = share
        self.provenance = f"book, {self._share:g} flipped"

    def __call__(self, answers: Sequence[Shown]) -> list[tuple[Claim, ...] | RecordError]:
        """The claims of each answer."""
        all_claims = super().__call__(answers)
        return [
            claims if isinstance(claims, RecordError) else tuple(self._err(answer.asked.id, claim) for claim in claims)
            for answer, claims in zip(answers, all_claims, strict=True)
        ]

    def _err(self, id: str, claim: Claim) -> Claim:
        digest = hashlib.sha256(f"{id} {claim.object}".encode()).digest()
        if int.from_bytes(digest[:8], "big") >= self._share * 2**64:
            return claim
        return claim._replace(verdict=FALSE if claim.verdict == TRUE else TRUE)
