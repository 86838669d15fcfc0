"""Test whether a gain is real: two models' answers to one benchmark, question by question."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mfpo.answer.judge_settings import JudgeSettings
from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer, plain, read_answers
from mfpo.evaluate.benchmark import ASKED_FREELY, BENCHMARKS, score
from mfpo.evaluate.figures import Difference, Tally, paired_differences
from mfpo.files import some
from mfpo.image_names import image_key


class Comparison(NamedTuple):
    """The difference of each figure, and the questions left out because one model's verdict is unreadable."""

    differences: dict[str, Difference]
    left_out: list[str]


def compare(
    name: str, a: Any, b: Any, annotations: Any = None, *, judge: JudgeSettings | None = None, **settings: Any
) -> Comparison:
    """The differences of two models' answers to a benchmark, each figure with its interval and p.

    Takes what `score` takes for one of them. Where the annotations tell what was asked, a model may leave questions
    out. Raises MfpoError as `score` does, or when the two do not answer the same questions.
    """
    if "allow_missing" in inspect.signature(BENCHMARKS[name]).parameters and name not in ASKED_FREELY:
        # What only one of the two has left out is told below.
        settings = {"allow_missing": True} | settings
    if name in ASKED_FREELY:
        first, second = (
            read_answers(Path(answers)) if isinstance(answers, str | Path) else answers for answers in (a, b)
        )
        _check_same_questions(first, second)
    of_a, of_b = (score(name, answers, annotations, judge=judge, **settings) for answers in (a, b))
    left_out = sorted({*of_a.left_out, *of_b.left_out})
    differences = paired_differences(_without(of_a.compared, left_out), _without(of_b.compared, left_out))
    if not differences:
        raise MfpoError("no question has a readable verdict on both answers; use another judge")
    return Comparison(differences, left_out)


def _check_same_questions(a: Sequence[Answer], b: Sequence[Answer]) -> None:
    """Raise MfpoError when, as far as they say it, the answers are to other questions about the same images."""
    names = [{str(answer.question_id) for answer in answers if answer.question_id is not None} for answers in (a, b)]
    alone = sorted(names[0] ^ names[1]) if all(names) else []
    if alone:
        raise MfpoError(
            f"{len(alone)} question ids are in only one of the two ({some(alone)}); give answers to the same questions"
        )
    first, second = (_prompts(answers, by_id=all(names)) for answers in (a, b))
    wrong = [name for name, prompts in first.items() if second.get(name, prompts) != prompts]
    if wrong:
        raise MfpoError(
            f"{len(wrong)} of {len(first)} have different prompts in the two files ({some(wrong)}); "
            "give answers to the same questions"
        )


def _prompts(answers: Sequence[Answer], *, by_id: bool) -> dict[str, set[str]]:
    """The prompts by question or, where only one of two files numbers them, by image."""
    prompts: dict[str, set[str]] = {}
    for answer in answers:
        if answer.prompt is not None:
            name = answer.question_id if by_id else image_key(answer.image_id or "")
            prompts.setdefault(str(name), set()).add(plain(answer.prompt))
    return prompts


def _without(tallies: Mapping[str, Tally], left_out: Collection[str]) -> dict[str, Tally]:
    """The tallies of the other units; a figure that has no other is dropped."""
    units_by_name = {
        name: {unit: counts for unit, counts in tally.units.items() if unit not in left_out}
        for name, tally in tallies.items()
    }
    return {name: replace(tallies[name], units=units) for name, units in units_by_name.items() if units}
