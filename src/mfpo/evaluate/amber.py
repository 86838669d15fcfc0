"""AMBER: descriptions scored by the objects they name, and yes/no questions, without a judge (Wang et al. 2023).

The figures are those of the official script (github.com/junyangwang0410/AMBER, inference.py), its quirks included;
docs/evaluate.md lists them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mfpo.errors import MfpoError
from mfpo.evaluate.amber_answers import read_amber_answers
from mfpo.evaluate.answers import Answer, Asked, check_asked, check_captions, thinking
from mfpo.evaluate.benchmark import AllowMissing, Result, benchmark, nested
from mfpo.evaluate.existence import read_yes_no
from mfpo.evaluate.figures import Array, Tally, quotient
from mfpo.files import read_field, read_json, read_texts, some

if TYPE_CHECKING:
    from mfpo.evaluate.amber_words import Reading

# The types in annotations.json, and the dimensions in which they count.
_DIMENSIONS = {
    "discriminative-hallucination": ("existence",),
    "discriminative-attribute-state": ("attribute", "attribute.state"),
    "discriminative-attribute-number": ("attribute", "attribute.number"),
    "discriminative-attribute-action": ("attribute", "attribute.action"),
    "discriminative-relation": ("relation",),
    "relation": ("relation",),
}
# What each count begins with in the script's metrics.txt.
_BEGIN = 0.001
_FILES = ("annotations.json", "query_generative.json", "query_discriminative.json", "relation.json", "safe_words.txt")


@dataclass(frozen=True)
class AmberQuestion:
    """A question; `truth` holds the objects in the image and `hallu` absent ones, or `truth` is "yes" or "no".

    `text` is the question, "" where it is to describe the image, which may be asked in other words.
    """

    image: str
    kind: str
    truth: str | tuple[str, ...]
    hallu: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class AmberData:
    """The questions by id, the words that stand for an object besides its own, and those that are never wrong."""

    questions: Mapping[str, AmberQuestion]
    association: Mapping[str, Sequence[str]]
    safe: frozenset[str]

    @cached_property
    def words(self) -> frozenset[str]:
        """The words that count as objects; all others are passed over."""
        return frozenset(self.association).union(*self.association.values())


@dataclass(frozen=True)
class Description:
    """The objects that a description names, which of them are hallucinated, and which entries of the lists they hit."""

    objects: tuple[str, ...]
    hallucinated: tuple[str, ...]
    covered: frozenset[int]
    cog: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Amber(Result):
    """Figures as "discriminative.existence.f1"; `counts` of answers by kind, and the objects of each description."""

    counts: Mapping[str, Mapping[str, int]]
    descriptions: Mapping[str, Description]

    @property
    def compared(self) -> dict[str, Tally]:
        """The tallies without what the script's counts begin with: equal shares are equal figures.

        That depends on the number of answers, and would pass for a difference.
        """
        plain = {name: partial(tally.statistic, **{"begin": 0}) for name, tally in self.tallies.items()}
        return {name: replace(tally, statistic=plain[name]) for name, tally in self.tallies.items()}

    def json(self) -> dict[str, Any]:
        """How objects were read; the figures in percent, to the script's one decimal, and the counts; the objects."""
        written = dict(self.facts) | nested({name: asdict(figure.rounded(1)) for name, figure in self.figures.items()})
        for kind, counts in self.counts.items():
            written[kind] = written.get(kind, {}) | counts
        return written | {"details": list(self.details)}


@benchmark("amber")
def amber(
    answers: Path | Sequence[Answer],
    annotations: Path | AmberData,
    reading: "Reading | None" = None,
    *,
    allow_missing: AllowMissing = False,
) -> Amber:
    """AMBER, descriptions and yes/no questions (Wang et al. 2023).

    The annotations are the folder of AMBER's data.

    Example: mfpo eval amber answers.json --annotations AMBER/data --json amber.json

    A kind of answers that is absent altogether is left out; `reading` is by default the official one as far as it is
    installed. Raises MfpoError when ids are absent, unknown or double, when an image is not the question's, and when
    answers are missing; `allow_missing` counts these instead, and as in the official script they are not scored.
    """
    data = load_amber(annotations) if isinstance(annotations, Path) else annotations
    if isinstance(answers, Path):
        answers = read_amber_answers(answers, data.questions)
    if reading is None:
        from mfpo.evaluate.amber_words import open_reading  # and with it textblob, which takes seconds

        reading = open_reading(data.words)
    questions = data.questions
    kinds = {_kind(questions[name]) for answer in answers if (name := str(answer.question_id)) in questions}
    asked = {kind: [name for name, question in questions.items() if _kind(question) == kind] for kind in sorted(kinds)}
    known = {name: Asked(questions[name].text, (questions[name].image,)) for names in asked.values() for name in names}
    answers_by_id = check_asked(answers, known, "AMBER", allow_missing=allow_missing)
    by_kind = {kind: {name: answers_by_id[name] for name in asked[kind] if name in answers_by_id} for kind in asked}
    texts = {kind: {name: answer.text for name, answer in by_kind[kind].items()} for kind in asked}
    counts = {kind: _counts(texts[kind], len(asked[kind])) | thinking(by_kind[kind].values()) for kind in asked}
    descriptions = {
        name: describe(text, questions[name], data, reading) for name, text in texts.get("generative", {}).items()
    }
    check_captions(texts.get("generative", {}).values())
    tallies = _generative(descriptions, data) if descriptions else {}
    if texts.get("discriminative"):
        tallies |= _discriminative(texts["discriminative"], data)
        counts["discriminative"] |= _unread(texts["discriminative"])
    return Amber(
        tallies,
        facts={"official": reading.official, "nouns": reading.nouns, "similarity": reading.similarity},
        details=[
            {"id": name, "objects": list(description.objects), "hallucinated": list(description.hallucinated)}
            for name, description in descriptions.items()
        ],
        counts=counts,
        descriptions=descriptions,
    )


def describe(text: str, question: AmberQuestion, data: AmberData, reading: "Reading") -> Description:
    """Read one description as the official script does."""
    safe, hallu = _checklist(question.truth, data), _checklist(question.hallu, data)
    objects = [noun for noun in reading.find(text) if noun in data.words]
    hallucinated: list[str] = []
    covered: set[int] = set()
    cog: set[int] = set()
    for noun in objects:
        if noun in data.safe:
            continue
        same = partial(eq, noun)
        similar = partial(reading.similar, noun)
        if (hit := _first(same, safe)) is not None:
            covered.add(hit)
            continue
        cog.update(hit for hit in (_first(same, hallu), _first(similar, hallu)) if hit is not None)
        if (hit := _first(similar, safe)) is not None:
            covered.add(hit)
        else:
            hallucinated.append(noun)
    return Description(tuple(objects), tuple(hallucinated), frozenset(covered), frozenset(cog))


def load_amber(folder: Path) -> AmberData:
    """Read AMBER's own files. Raises MfpoError when one is absent, of another form, or does not go with the others."""
    annotations, *queries, near = (read_json(amber_file(folder, name)) for name in _FILES[:4])
    lists = dict(zip(_FILES[:3], (annotations, *queries), strict=True))
    strange = [name for name, entries in lists.items() if not isinstance(entries, list)]
    if strange or not isinstance(near, dict):
        fault = f"{some(strange)}: no list" if strange else f"{_FILES[3]}: no object"
        raise MfpoError(f"{folder}: does not hold AMBER's files ({fault}); give one with {', '.join(_FILES)}")
    try:
        safe = (folder / _FILES[4]).read_text(encoding="utf-8").split("\n")
        queried = {
            str(entry["id"]): (read_field(entry, "image"), read_field(entry, "query"))
            for query in queries
            for entry in query
        }
        questions = {
            (name := str(entry["id"])): _question(entry, *queried.get(name, ("", ""))) for entry in annotations
        }
        near = {str(word): tuple(map(str, words)) for word, words in near.items()}
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise MfpoError(
            f"{folder}: does not hold AMBER's files ({repr(error)[:80]}); give one with {', '.join(_FILES)}"
        ) from None
    apart = sorted(queried.keys() ^ questions.keys())
    if apart:
        raise MfpoError(
            f"{folder}: {len(apart)} ids are only in annotations.json or only in the queries ({some(apart)}); "
            "give files of one version of AMBER"
        )
    truths = [(*question.truth, *question.hallu) for question in questions.values() if _kind(question) == "generative"]
    strange = sorted(set().union(*truths).difference(near))
    if strange:
        raise MfpoError(
            f"{folder}: {len(strange)} objects of annotations.json are not in relation.json ({some(strange)}); "
            "give files of one version of AMBER"
        )
    return AmberData(questions, near, frozenset(safe))


def amber_file(folder: Path, name: str) -> Path:
    """One of AMBER's files; in its repository, the queries lie in a folder of their own."""
    return below if (below := folder / "query" / name).exists() else folder / name


def _kind(question: AmberQuestion) -> str:
    return "generative" if question.kind == "generative" else "discriminative"


def _question(entry: Mapping[str, Any], image: str, text: str) -> AmberQuestion:
    kind, truth = entry["type"], entry["truth"]
    if kind == "generative":
        return AmberQuestion(image, kind, read_texts(entry, "truth"), read_texts(entry, "hallu"))
    if kind not in _DIMENSIONS or truth not in ("yes", "no"):
        raise KeyError(f"id {entry['id']} has type {kind} and truth {truth}")
    return AmberQuestion(image, kind, truth, text=text)


def _counts(texts: Mapping[str, str], asked: int) -> dict[str, int]:
    empty = sum(not text.strip() for text in texts.values())
    return {"answers": len(texts), "missing": asked - len(texts), "empty": empty}


def _unread(texts: Mapping[str, str]) -> dict[str, int]:
    """How many answers the script's rule cannot read, and how many cannot be read at all."""
    return {
        "neither_yes_nor_no": sum(text not in ("Yes", "No") for text in texts.values()),
        "unreadable": sum(read_yes_no(text) is None for text in texts.values()),
    }


def _checklist(entries: Sequence[str], data: AmberData) -> list[tuple[str, int]]:
    """The words that hit an entry, in the script's order: those near to each entry, then the entries themselves."""
    near = [(word, index) for index, entry in enumerate(entries) for word in data.association[entry]]
    return near + [(entry, index) for index, entry in enumerate(entries)]


def _first(hits: Callable[[str], bool], checklist: Sequence[tuple[str, int]]) -> int | None:
    return next((index for word, index in checklist if hits(word)), None)


def _rate(sums: Array, part: int, whole: int, begin: float) -> Array:
    """One sum by another in percent, over what the count begins with; a share of nothing is 0."""
    return quotient(100 * sums[..., part], sums[..., whole] + begin)


def _hal(sums: Array, begin: float) -> Array:
    return 100 - _rate(sums, 0, 1, begin)


def _f1(sums: Array, begin: float, above_zero: float) -> Array:
    """F1 of the printed precision and recall."""
    precision, recall = (np.round(_rate(sums, 2, whole, begin), 1) / 100 for whole in (3, 4))
    f1: Array = 200 * precision * recall / (precision + recall + above_zero)
    return f1


def _generative(details: Mapping[str, Description], data: AmberData) -> dict[str, Tally]:
    parts: dict[str, dict[str, tuple[float, ...]]] = {"chair": {}, "cover": {}, "hal": {}, "cog": {}}
    for name, description in details.items():
        question = data.questions[name]
        parts["chair"][name] = len(description.hallucinated), len(description.objects)
        parts["cover"][name] = len(description.covered), len(question.truth)
        parts["hal"][name] = not description.hallucinated, 1
        parts["cog"][name] = len(description.cog), len(question.hallu)
    rate, hal = partial(_rate, part=0, whole=1, begin=_BEGIN), partial(_hal, begin=_BEGIN)
    return {f"generative.{name}": Tally(units, hal if name == "hal" else rate) for name, units in parts.items()}


def _discriminative(texts: Mapping[str, str], data: AmberData) -> dict[str, Tally]:
    """The figures of all questions, of each dimension, and of all when free text is read as in POPE."""
    yes_no = {name: text if text in ("Yes", "No") else "" for name, text in texts.items()}
    read = {name: (read_yes_no(text) or "").capitalize() for name, text in texts.items()}
    tallies = _rates("", yes_no, data)
    for dimension in dict.fromkeys(name for names in _DIMENSIONS.values() for name in names):
        asked = {name: yes_no[name] for name in yes_no if dimension in _DIMENSIONS[data.questions[name].kind]}
        if asked:
            # The script adds up the counts of the three kinds of attributes, with what each begins with.
            begin = 3 * _BEGIN if dimension == "attribute" else _BEGIN
            above_zero = 0.001 if dimension == "existence" else 0.0001
            tallies |= _rates(f"{dimension}.", asked, data, begin, above_zero)
    return tallies | _rates("free_text.", read, data)


def _rates(
    prefix: str, yes_no: Mapping[str, str], data: AmberData, begin: float = _BEGIN, above_zero: float = 0.0001
) -> dict[str, Tally]:
    """Accuracy, and precision, recall and F1 of the answer "No"; what is neither Yes nor No is wrong."""
    units: dict[str, tuple[float, ...]] = {}
    for name, text in yes_no.items():
        is_no = data.questions[name].truth == "no"
        says_no = text == "No"
        correct = text == ("No" if is_no else "Yes")
        units[name] = (correct, 1, is_no and says_no, says_no, is_no)
    statistics: dict[str, Callable[[Array], Array]] = {
        "accuracy": partial(_rate, part=0, whole=1, begin=begin),
        "precision": partial(_rate, part=2, whole=3, begin=begin),
        "recall": partial(_rate, part=2, whole=4, begin=begin),
        "f1": partial(_f1, begin=begin, above_zero=above_zero),
    }
    return {f"discriminative.{prefix}{name}": Tally(units, statistic) for name, statistic in statistics.items()}
