"""An answer without its false claims, by the smallest edit that leaves whole sentences."""

import re
from collections.abc import Sequence

from mfpo.pairs.check import FALSE, TRUE, Checked, Claim
from mfpo.pairs.removal import Cut, apply, remove
from mfpo.pairs.sentences import sentences

# A sentence with one of these says nothing without the one before.
_POINTS_BACK = re.compile(
    r"\b(?:it|its|they|them|their|he|him|his|she|her|this|that|these|those|other|another|both|also)\b", re.IGNORECASE
)
_BEGINS_BACK = re.compile(r"\W*(?:it|its|they|their|he|his|she|her|this|these|those|both|next to it)\b", re.IGNORECASE)


def without_false(answer: Checked, others: Sequence[Checked] = ()) -> str:
    """The answer without its false claims.

    A false thing goes from its sentence where a rule leaves a whole sentence (`removal.remove`). Else the sentence
    gives way to one of `others` that claims only true things, all new to the answer; where there is none, it
    goes. A sentence that begins with a pronoun goes with the one before it, unless it claims something true.
    """
    spare = [text for other in others for text in _spare_sentences(other)]
    named = {claim.object for claim in answer.claims}
    pieces: list[str] = []
    has_gone = False
    place = 0
    for start, end in sentences(answer.text):
        blank, place = answer.text[place:start], end
        claims = _claims_in(answer, start, end)
        sentence = _mend(answer.text[start:end], start, [claim for claim in claims if claim.verdict == FALSE])
        is_orphan = has_gone and _BEGINS_BACK.match(answer.text[start:end]) and all(c.verdict != TRUE for c in claims)
        if sentence is None and (new := next((text for text, objects in spare if not named & objects), None)):
            named |= next(objects for text, objects in spare if text == new)
            sentence = new
        has_gone = sentence is None or bool(is_orphan)
        if sentence is not None and not is_orphan:
            pieces.append(blank + sentence)
    return "".join(pieces).strip()


def _claims_in(answer: Checked, start: int, end: int) -> list[Claim]:
    """The claims of a sentence; one of the whole answer, whose words a judge changed, may be any sentence's."""
    return [c for c in answer.claims if start <= c.start < end and (c.end <= end or not _is_of_all(c, answer))]


def _is_of_all(claim: Claim, answer: Checked) -> bool:
    return (claim.start, claim.end) == (0, len(answer.text))


def _mend(sentence: str, offset: int, false: Sequence[Claim]) -> str | None:
    """The sentence without the things that are not there, None where it cannot stand without one of them."""
    left = [(claim.start - offset, claim.end - offset) for claim in false]
    while left:
        start, end = left.pop()  # the last one, so that the places of the others stay
        cuts = remove(sentence, start, end)
        if cuts is None:
            return None
        sentence = apply(sentence, cuts)
        left = [span for span in (_shift(span, cuts) for span in left) if span]
    return sentence


def _shift(span: tuple[int, int], cuts: Sequence[Cut]) -> tuple[int, int] | None:
    """Where a span is after cuts that are in order from the end; None where it went with one."""
    start, end = span
    for cut in cuts:
        if cut.start <= start < cut.end:
            return None
        if cut.end <= start:
            by = len(cut.text) - (cut.end - cut.start)
            start, end = start + by, end + by
    return start, end


def _spare_sentences(answer: Checked) -> list[tuple[str, frozenset[str]]]:
    """The sentences that claim true things and nothing else, and that stand alone; each with what it claims."""
    if any(_is_of_all(claim, answer) and claim.verdict != TRUE for claim in answer.claims):
        return []
    spare = []
    for start, end in sentences(answer.text):
        claims = _claims_in(answer, start, end)
        text = answer.text[start:end]
        if claims and all(claim.verdict == TRUE for claim in claims) and not _POINTS_BACK.search(text):
            spare.append((text, frozenset(claim.object for claim in claims)))
    return spare
