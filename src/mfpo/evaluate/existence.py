"""Existence questions ("Is there a dog in the image?"), scored as in POPE (Li et al. 2023, section 4.1)."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer, check_ids, read_id, read_label, read_rows, some
from mfpo.evaluate.figures import Figure, Tally, figure_of

Reader = Callable[[str], str | None]


@dataclass(frozen=True)
class Question:
    """One yes/no question about an image; `label` is the true "yes" or "no"."""

    question_id: str
    image: str
    text: str
    label: str


@dataclass(frozen=True)
class Existence:
    """Shares in percent, with "yes" as the positive class; a share of nothing is 0.

    `intervals` has the shares again, each with its 95 % bootstrap interval and the number of questions scored.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    questions: int
    unreadable: int
    missing: int
    intervals: Mapping[str, Figure]


def read_yes_no(text: str) -> str | None:
    """What an answer says: "yes", "no", or None when it cannot be read.

    As in POPE's script, only the first sentence counts, the words "no" and "not" make it a "no", and they go before
    "yes". Different from there: case does not matter, "n't" is a "not", every end of a sentence or line ends the first
    sentence, and what remains is a "yes" only if it has the word "yes" or says "there is" or "there are". POPE takes
    all the rest for "yes", even an empty text.

    >>> [read_yes_no(text) for text in ("Yes, a dog.", "There isn't any dog.", "There is a dog.", "A dog?")]
    ['yes', 'no', 'yes', None]
    """
    sentence = re.split(r"[.!?\n]", text.strip().lower().replace("’", "'"), maxsplit=1)[0]
    if re.search(r"\b(no|not|cannot)\b|n't\b", sentence):
        return "no"
    return "yes" if re.search(r"\b(yes|there is|there's|there are)\b", sentence) else None


def read_as_pope(text: str) -> str:
    """What an answer says for POPE's script (evaluate.py): "no", or "yes" for all the rest, even an empty text.

    >>> [read_as_pope(text) for text in ("No, a cat.", "There is not.", "NO", "There isn't", "")]
    ['no', 'no', 'yes', 'yes', 'yes']
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in words for word in ("No", "not", "no")) else "yes"


def existence(
    answers: Sequence[Answer],
    labels: Mapping[str, str],
    *,
    read: Reader = read_yes_no,
    allow_missing: bool = False,
) -> Existence:
    """Score one answer to each question of `labels` (question id -> "yes" or "no").

    Answers are read by `read`; one that is unreadable counts as wrong and as no "yes". Raises MfpoError
    when there is no question, or when answers are double, to questions that `labels` does not know, or missing;
    `allow_missing` counts the missing instead, and only the others are scored.
    """
    readings = _readings(answers, labels, read, allow_missing)
    intervals = {name: figure_of(tally) for name, tally in _tallies(readings, labels).items()}
    return Existence(
        **{name: figure.value for name, figure in intervals.items()},
        questions=len(readings),
        unreadable=sum(reading is None for reading in readings.values()),
        missing=len(labels) - len(readings),
        intervals=intervals,
    )


def existence_tallies(
    answers: Sequence[Answer], labels: Mapping[str, str], *, read: Reader = read_yes_no, allow_missing: bool = False
) -> dict[str, Tally]:
    """What the figures of `existence` are made of, for comparisons."""
    return _tallies(_readings(answers, labels, read, allow_missing), labels)


def load_questions(path: Path) -> list[Question]:
    """Read POPE's questions: JSONL with `question_id`, `image`, `text` and `label`.

    Raises MfpoError that names the file and the line when one of them is missing or a question id comes twice.
    """
    questions: dict[str, Question] = {}
    for where, row in read_rows(path):
        question_id, image = read_id(row, ("question_id",), where), read_id(row, ("image",), where)
        text, label = row.get("text"), read_label(row, where)
        if question_id is None or image is None or label is None or not isinstance(text, str):
            raise MfpoError(f"{where}: is no question; give question_id, image, text and label")
        if question_id in questions:
            raise MfpoError(f"{where}: question_id {question_id} comes a second time; give each question its own")
        questions[question_id] = Question(question_id, image, text, label)
    return list(questions.values())


def labels_of(rows: Sequence[Question] | Sequence[Answer]) -> dict[str, str]:
    """Question id -> label, from questions, or from answers that bring their own labels.

    Raises MfpoError when a row has no label.
    """
    missing = [str(row.question_id) for row in rows if row.label is None]
    if missing:
        raise MfpoError(f"question {some(missing)}: no label in the answers; give the questions with --annotations")
    return {str(row.question_id): str(row.label) for row in rows}


def _readings(
    answers: Sequence[Answer], labels: Mapping[str, str], read: Reader, allow_missing: bool
) -> dict[str, str | None]:
    """What each answer says, by question id."""
    if not labels:
        raise MfpoError("there is no question to score")
    check_ids(answers, labels, () if allow_missing else labels)
    return {str(answer.question_id): read(answer.text) for answer in answers}


def _tallies(readings: Mapping[str, str | None], labels: Mapping[str, str]) -> dict[str, Tally]:
    """Each figure as parts of wholes, question by question; F1 is 2 TP / (2 TP + FP + FN)."""
    parts: dict[str, dict[str, tuple[float, ...]]] = {
        "accuracy": {}, "precision": {}, "recall": {}, "f1": {}, "yes_ratio": {}
    }  # fmt: skip
    for name, reading in readings.items():
        said, true = reading == "yes", labels[name] == "yes"
        both = said and true
        parts["accuracy"][name] = reading == labels[name], 1
        parts["precision"][name] = both, said
        parts["recall"][name] = both, true
        parts["f1"][name] = 2 * both, said + true
        parts["yes_ratio"][name] = said, 1
    return {name: Tally(units) for name, units in parts.items()}
