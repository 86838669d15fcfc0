"""The worst answer against itself put right (RLHF-V's kind of pair, from the model's own words)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mfpo.errors import RecordError
from mfpo.pairs.check import Checked
from mfpo.pairs.pair import PAIRINGS, Answered, Pair, check_again
from mfpo.settings import about

if TYPE_CHECKING:
    from mfpo.pairs.check import Checker


@PAIRINGS.register("corrected")
def corrected(
    questions: Sequence[Answered],
    checker: "Checker",
    *,
    rewrite: Annotated[
        Literal["rules", "judge"], about("who edits: rules on sentences, or the judge of --check judge=NAME")
    ] = "rules",
) -> list[Pair | str]:
    """The answer with the smallest share of true claims, and the same without its false ones, which is checked again.

    Where the judge rewrites, the checker is `judge.EndpointJudge` (`settings.check_use`).
    """
    worst = [
        min((a for a in question.answers if a.false), key=lambda answer: answer.share or 0.0) for question in questions
    ]
    if rewrite == "judge":
        judge: Any = checker
        texts = judge.rewrite([(question.asked, answer) for question, answer in zip(questions, worst, strict=True)])
    else:
        texts = [_by_rules(question.answers, answer) for question, answer in zip(questions, worst, strict=True)]
    changed = [
        (question.asked, text)
        for question, text, answer in zip(questions, texts, worst, strict=True)
        if isinstance(text, str) and _is_new(text, answer)
    ]
    again = iter(check_again(changed, checker))
    pairs: list[Pair | str] = []
    for text, answer in zip(texts, worst, strict=True):
        if isinstance(text, RecordError):
            pairs.append(str(text))
        elif not _is_new(text, answer):
            pairs.append("nothing is left of the corrected answer" if not text else "the correction changes nothing")
        else:
            checked = next(again)
            pairs.append(Pair(checked, answer) if isinstance(checked, Checked) else checked)
    return pairs


def _by_rules(answers: Sequence[Checked], worst: Checked) -> str:
    from mfpo.pairs.edit import without_false  # with textblob, which takes seconds

    return without_false(worst, [answer for answer in answers if answer is not worst])


def _is_new(text: str, answer: Checked) -> bool:
    return bool(text) and text != answer.text
