"""Which two answers to a question become a pair: a pairing a file, behind one protocol."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mfpo.errors import RecordError
from mfpo.pairs.check import Checked
from mfpo.registry import Registry

if TYPE_CHECKING:
    from mfpo.pairs.check import Checker
    from mfpo.pairs.questions import Asked


class Pair(NamedTuple):
    chosen: Checked
    rejected: Checked


class Answered(NamedTuple):
    """A question with its whole answers, of which none is empty, cut or double."""

    asked: "Asked"
    answers: Sequence[Checked]


# (questions with an answer that has a false claim, checker, *, own settings) -> a pair each, or why there is none
Pairing = Callable[..., "list[Pair | str]"]

PAIRINGS: Registry[Pairing] = Registry("pairing", "mfpo.pairs", ("ranked", "corrected"))


def why_none(answers: Sequence[Checked]) -> str | None:
    """Why no pair can be made of these answers, if so."""
    if all(answer.share is None for answer in answers):
        return "no claim that could be checked"
    if not any(answer.false for answer in answers):
        return "no false claim"
    if not any(answer.true for answer in answers):
        return "only false claims"
    return None


def check_again(texts: Sequence[tuple["Asked", str]], checker: "Checker") -> list[Checked | str]:
    """Texts that were put right, with their claims, or what is still wrong with them."""
    from mfpo.pairs.check import Shown

    outcomes: list[Checked | str] = []
    claims_of = checker([Shown(asked, text) for asked, text in texts]) if texts else []
    for (_, text), claims in zip(texts, claims_of, strict=True):
        if isinstance(claims, RecordError):
            outcomes.append(str(claims))
            continue
        checked = Checked(text, claims)
        if checked.false:
            outcomes.append("the corrected answer still has a false claim")
        elif not checked.true:
            outcomes.append("the corrected answer has no true claim left")
        else:
            outcomes.append(checked)
    return outcomes
