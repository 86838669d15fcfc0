"""Whether a gain is real: two models' answers to one benchmark, question by question."""

from collections.abc import Callable, Mapping
from pathlib import Path

from mfpo.errors import SettingError
from mfpo.evaluate.amber import amber, load_amber
from mfpo.evaluate.amber_words import open_reading
from mfpo.evaluate.answers import read_answers
from mfpo.evaluate.chair import chair_tallies, load_annotations
from mfpo.evaluate.existence import existence_tallies, labels_of, load_questions
from mfpo.evaluate.figures import Difference, Tally, compare
from mfpo.evaluate.pope import pope_tallies, split_files

# From the answers and the annotations to what the figures are made of.
Tallier = Callable[[Path, Path], Mapping[str, Tally]]

TALLIERS: dict[str, Tallier] = {}


def tallier(name: str) -> Callable[[Tallier], Tallier]:
    """Register a function as `mfpo eval compare NAME`."""

    def add(function: Tallier) -> Tallier:
        if name in TALLIERS:
            raise ValueError(f"two benchmarks are named {name!r}")
        TALLIERS[name] = function
        return function

    return add


def compare_answers(benchmark: str, a: Path, b: Path, annotations: Path) -> dict[str, Difference]:
    """The differences of two files of answers (of folders, for POPE), each figure with its interval and p.

    `annotations` is the file or folder that scores one of them. Raises SettingError for an unknown benchmark, and
    MfpoError as the benchmark does, or when the two do not answer the same questions.
    """
    if benchmark not in TALLIERS:
        raise SettingError(f"benchmark is {benchmark!r}, but must be one of {', '.join(TALLIERS)}")
    tally = TALLIERS[benchmark]
    return compare(tally(a, annotations), tally(b, annotations))


# A model may leave questions out here: `compare` then says which of them only one of the two has answered.


@tallier("chair")
def _chair(answers: Path, annotations: Path) -> Mapping[str, Tally]:
    return chair_tallies(read_answers(answers), load_annotations(annotations))


@tallier("existence")
def _existence(answers: Path, annotations: Path) -> Mapping[str, Tally]:
    return existence_tallies(read_answers(answers), labels_of(load_questions(annotations)), allow_missing=True)


@tallier("pope")
def _pope(answers: Path, annotations: Path) -> Mapping[str, Tally]:
    given = {split: read_answers(file) for split, file in split_files([answers]).items()}
    questions = {split: load_questions(file) for split, file in split_files([annotations]).items()}
    return pope_tallies(given, questions, allow_missing=True)


@tallier("amber")
def _amber(answers: Path, annotations: Path) -> Mapping[str, Tally]:
    benchmark = load_amber(annotations)
    return amber(read_answers(answers), benchmark, open_reading(benchmark.words), allow_missing=True).tallies
