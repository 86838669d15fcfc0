"""Whether a gain is real: two models' answers to one benchmark, question by question."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from mfpo.errors import SettingError
from mfpo.evaluate.amber import amber, load_amber
from mfpo.evaluate.amber_words import open_reading
from mfpo.evaluate.answers import read_answers
from mfpo.evaluate.chair import chair, load_annotations
from mfpo.evaluate.existence import existence, load_questions
from mfpo.evaluate.figures import Difference, Tally, compare
from mfpo.evaluate.judged import judge_llava_bench, judge_mmhal, judge_object_halbench
from mfpo.evaluate.pope import pope, pope_tallies, split_files


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
    first, second = score(a, annotations, **options), score(b, annotations, **options)
    left_out = sorted({*first.unreadable, *second.unreadable})
    differences = compare(_without(first.tallies, left_out), _without(second.tallies, left_out))
    return Comparison(differences, left_out)


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
    return Scored(existence(read_answers(answers), load_questions(annotations), allow_missing=True).tallies)


@benchmark("pope")
def _pope(answers: Path, annotations: Path) -> Scored:
    given = {split: read_answers(file) for split, file in split_files([answers]).items()}
    questions = {split: load_questions(file) for split, file in split_files([annotations]).items()}
    return Scored(pope_tallies(pope(given, questions, allow_missing=True)))


@benchmark("amber")
def _amber(answers: Path, annotations: Path) -> Scored:
    asked = load_amber(annotations)
    return Scored(amber(read_answers(answers), asked, open_reading(asked.words), allow_missing=True).tallies)


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
