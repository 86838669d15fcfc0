"""The best answer against the worst, by the share of true claims (RLAIF-V, CHAIR-DPO)."""

from collections.abc import Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Annotated

from mfpo.pairs.check import Checked
from mfpo.pairs.pair import PAIRINGS, Answered, Pair
from mfpo.settings import about

if TYPE_CHECKING:
    from mfpo.pairs.check import Checker


@PAIRINGS.register("ranked")
def ranked(
    questions: Sequence[Answered],
    checker: "Checker",
    *,
    length_ratio: Annotated[
        float, about("maximum ratio of words in the longer answer of a pair to words in the shorter", least=1)
    ] = 1.3,
) -> list[Pair | str]:
    """Of all two answers of like length, those whose shares of true claims differ most.

    Without the limit the shortest answers would win, as who says little says nothing false; RLAIF-V drops pairs until
    chosen and rejected are equally long on average. Of equal differences the pair whose chosen answer has more true
    claims is taken, then that of the most similar lengths, then the first.
    """
    return [_best(question.answers, length_ratio) for question in questions]


def _best(answers: Sequence[Checked], length_ratio: float) -> Pair | str:
    comparable = [answer for answer in answers if answer.share is not None]
    if len(comparable) < 2:
        return "all answers are alike" if len(answers) == 1 else "only one answer has claims that could be checked"
    pairs = [
        Pair(*pair)
        for pair in permutations(comparable, 2)
        if _gain(Pair(*pair)) > 0 and _ratio(Pair(*pair)) <= length_ratio
    ]
    if pairs:
        return max(pairs, key=lambda pair: (_gain(pair), pair.chosen.true, -_ratio(pair)))
    is_equal = len({answer.share for answer in comparable}) == 1
    return "all answers are equally true" if is_equal else "no better answer of like length"


def _gain(pair: Pair) -> float:
    return (pair.chosen.share or 0.0) - (pair.rejected.share or 0.0)


def _ratio(pair: Pair) -> float:
    """How many times as many words the longer of two answers has."""
    short, long = sorted(len(answer.text.split()) for answer in pair)
    return long / short
