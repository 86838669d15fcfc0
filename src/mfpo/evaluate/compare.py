"""Whether a gain is real: two models' answers to one benchmark, question by question."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from mfpo.errors import MfpoError, SettingError
from mfpo.evaluate.amber import amber, load_amber
from mfpo.evaluate.amber_words import open_reading
from mfpo.evaluate.answers import Answer, plain, read_answers
from mfpo.evaluate.chair import chair, load_annotations
from mfpo.evaluate.existence import existence, load_questions, read_existence_answers
from mfpo.evaluate.figures import Difference, Tally, compare
from mfpo.evaluate.judged import judge_llava_bench, judge_mmhal, judge_object_halbench
from mfpo.evaluate.pope import pope, pope_tallies, read_pope
from mfpo.files import some
from mfpo.image_names import image_key


class Scored(NamedTuple):
    """What a benchmark's figures are made of, and the questions that they leave out as unreadable."""

    tallies: Mapping[str, Tally]
    unreadable: Collection[str] = ()


class Comparison(NamedTuple):
    """The difference of each figure, and the questions left out because one model's verdict is unreadable."""

    differences: dict[str, Difference]
    left_out: list[str]


# Scores the answers by the annotations, and by options that are the benchmark's own.
BENCHMARKS: dict[str, Callable[..., Scored]] = {}

# Only the answers tell what was asked there.
_ASKED_FREELY = ("chair", "object-halbench")


def benchmark(name: str) -> Callable[[Callable[..., Scored]], Callable[..., Scored]]:
    """Register a function as `mfpo eval compare --benchmark NAME`."""

    def add(function: Callable[..., Scored]) -> Callable[..., Scored]:
        if name in BENCHMARKS:
            raise ValueError(f"two benchmarks are named {name!r}")
        BENCHMARKS[name] = function
        return function

    return add


def compare_answers(name: str, a: Path, b: Path, annotations: Path, **options: Any) -> Comparison:
    """The differences of two files of answers (of folders, for POPE), each figure with its interval and p.

    `annotations` and `options` are those that score one of them. Raises SettingError for a benchmark that is unknown
    or has other options, and MfpoError as the benchmark does, or when the two do not answer the same questions.
    """
    if name not in BENCHMARKS:
        raise SettingError(f"benchmark is {name!r}, but must be one of {', '.join(BENCHMARKS)}")
    score = BENCHMARKS[name]
    known = dict(list(inspect.signature(score).parameters.items())[2:])
    needed = [option for option, one in known.items() if one.default is one.empty and option not in options]
    faults = [f"needs --{option}" for option in needed] + [f"has no --{option}" for option in options.keys() - known]
    if faults:
        raise SettingError(f"benchmark {name} {', '.join(faults)}")
    if name in _ASKED_FREELY:
        _check_same_questions(read_answers(a), read_answers(b))
    first, second = score(a, annotations, **options), score(b, annotations, **options)
    left_out = sorted({*first.unreadable, *second.unreadable})
    differences = compare(_without(first.tallies, left_out), _without(second.tallies, left_out))
    return Comparison(differences, left_out)


def _check_same_questions(a: Sequence[Answer], b: Sequence[Answer]) -> None:
    """Raise MfpoError when, as far as they say it, the answers are to other questions about the same images."""
    names = [{str(one.question_id) for one in answers if one.question_id is not None} for answers in (a, b)]
    alone = sorted(names[0] ^ names[1]) if all(names) else []
    if alone:
        raise MfpoError(
            f"{len(alone)} question ids are in only one of the two ({some(alone)}); give answers to the same questions"
        )
    first, second = (_prompts(answers, by_id=all(names)) for answers in (a, b))
    wrong = [name for name, prompts in first.items() if second.get(name, prompts) != prompts]
    if wrong:
        raise MfpoError(
            f"{len(wrong)} of {len(first)} have another prompt in one file than in the other ({some(wrong)}); "
            "give answers to the same questions"
        )


def _prompts(answers: Sequence[Answer], *, by_id: bool) -> dict[str, set[str]]:
    """The prompts by question or, where only one of two files numbers them, by image."""
    prompts: dict[str, set[str]] = {}
    for one in answers:
        if one.prompt is not None:
            name = one.question_id if by_id else image_key(one.image_id or "")
            prompts.setdefault(str(name), set()).add(plain(one.prompt))
    return prompts


def _without(tallies: Mapping[str, Tally], left_out: Collection[str]) -> dict[str, Tally]:
    return {
        name: replace(tally, units={unit: counts for unit, counts in tally.units.items() if unit not in left_out})
        for name, tally in tallies.items()
    }


# A model may leave questions out here: `compare` then says which of them only one of the two has answered.


@benchmark("chair")
def _chair(answers: Path, annotations: Path) -> Scored:
    return Scored(chair(read_answers(answers), load_annotations(annotations)).tallies)


@benchmark("existence")
def _existence(answers: Path, annotations: Path) -> Scored:
    questions = load_questions(annotations)
    return Scored(existence(read_existence_answers(answers, questions), questions, allow_missing=True).tallies)


@benchmark("pope")
def _pope(answers: Path, annotations: Path) -> Scored:
    return Scored(pope_tallies(pope(*read_pope([answers], annotations), allow_missing=True)))


@benchmark("amber")
def _amber(answers: Path, annotations: Path) -> Scored:
    asked = load_amber(annotations)
    reading = open_reading(asked.words)
    # What the script's counts begin with depends on the number of answers, and would pass for a difference.
    return Scored(amber(read_answers(answers), asked, reading, allow_missing=True, begin=0).tallies)


def _judged(judge: Callable[..., tuple[Any, Any]]) -> Callable[..., Scored]:
    """Scores by a judge. MMHal-Bench leaves nothing out: there, an unreadable verdict counts as 0."""

    @wraps(judge)
    def score(answers: Path, annotations: Path, **options: Any) -> Scored:
        result, _ = judge(answers, annotations, allow_missing=True, **options)
        return Scored(result.tallies, getattr(result, "unreadable", ()))

    return score


benchmark("mmhal")(_judged(judge_mmhal))
benchmark("llava-bench")(_judged(judge_llava_bench))
benchmark("object-halbench")(_judged(judge_object_halbench))
