"""Existence questions ("Is there a dog in the image?"), scored as in POPE (Li et al. 2023, section 4.1)."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer, percent, read_id, read_label, read_rows, some


@dataclass(frozen=True)
class Question:
    """One yes/no question about an image; `label` is the true "yes" or "no"."""

    question_id: str
    image: str
    text: str
    label: str


@dataclass(frozen=True)
class Existence:
    """Shares in percent, with "yes" as the positive class; a share of nothing is 0."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    questions: int
    unreadable: int


def existence(answers: Sequence[Answer], labels: Mapping[str, str]) -> Existence:
    """Score one answer to each question of `labels` (question id -> "yes" or "no").

    Answers are read by `read_yes_no`; one that is unreadable counts as wrong and as no "yes". Raises MfpoError when
    there is no question, or when answers are missing, double, or to questions that `labels` does not know.
    """
    _check_ids(answers, labels)
    readings = {str(answer.question_id): read_yes_no(answer.text) for answer in answers}
    counts = Counter((readings[question_id], label) for question_id, label in labels.items())
    said_yes = counts["yes", "yes"] + counts["yes", "no"]
    is_yes = sum(label == "yes" for label in labels.values())
    return Existence(
        accuracy=percent(counts["yes", "yes"] + counts["no", "no"], len(labels)),
        precision=percent(counts["yes", "yes"], said_yes),
        recall=percent(counts["yes", "yes"], is_yes),
        f1=percent(2 * counts["yes", "yes"], said_yes + is_yes),
        yes_ratio=percent(said_yes, len(labels)),
        questions=len(labels),
        unreadable=counts[None, "yes"] + counts[None, "no"],
    )


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


def _check_ids(answers: Sequence[Answer], labels: Mapping[str, str]) -> None:
    if not labels:
        raise MfpoError("there is no question to score")
    nameless = sum(answer.question_id is None for answer in answers)
    if nameless:
        raise MfpoError(f"{nameless} of {len(answers)} answers have no question_id; give one in each row")
    counts = Counter(str(answer.question_id) for answer in answers)
    faults = {
        "not in the questions": [name for name in counts if name not in labels],
        "answered more than once": [name for name in counts if counts[name] > 1],
        "without an answer": [name for name in labels if name not in counts],
    }
    found = [f"{len(names)} {fault} ({some(names)})" for fault, names in faults.items() if names]
    if found:
        raise MfpoError(f"question ids: {'; '.join(found)}; give one answer to each question of this file")
