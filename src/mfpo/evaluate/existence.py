"""Existence questions ("Is there a dog in the image?"), scored as in POPE (Li et al. 2023, section 4.1)."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mfpo.answer.replies import EITHER, begins_with, without_lead
from mfpo.errors import MfpoError
from mfpo.evaluate.answers import TEXT_KEYS, Answer, Asked, check_asked, is_another, read_answers, thinking
from mfpo.evaluate.benchmark import AllowMissing, PlainResult, benchmark
from mfpo.evaluate.figures import Tally
from mfpo.files import read_id, read_label, read_rows, some

Reader = Callable[[str], str | None]


@dataclass(frozen=True)
class YesNoQuestion:
    """One yes/no question about an image; `label` is the true "yes" or "no"."""

    question_id: str
    image: str
    text: str
    label: str


def read_yes_no(text: str) -> str | None:
    """What an answer says: "yes", "no", or None when it cannot be read.

    An answer that begins with yes or no is that. Of all others, as in POPE's script, only the first sentence counts,
    the words "no" and "not" make it a "no", and they go before "yes". Different from there: a "yes" before a comma or
    the like goes before what follows, "yes or no" is neither, case does not matter, "n't" is a "not", every end of a
    sentence or line ends the first sentence, and what remains is a "yes" only if it has the word "yes" or says "there
    is" or "there are". POPE takes all the rest for "yes", even an empty text.

    >>> [read_yes_no(text) for text in ("1. Yes, not a cat.", "There isn't any dog.", "There is a dog.", "A dog?")]
    ['yes', 'no', 'yes', None]
    """
    if first_word := begins_with(text):
        return first_word
    sentence = re.split(r"[.!?\n]", EITHER.sub("", without_lead(text)).lower().replace("’", "'"), maxsplit=1)[0]
    if word := re.search(r"\b(?P<yes>yes)\b(?=\W*$|[^\w\s]*\s*[,;:–—])|\b(no|not|cannot)\b|n't\b", sentence):
        return "yes" if word["yes"] else "no"
    return "yes" if re.search(r"\b(yes|there is|there's|there are)\b", sentence) else None


def read_as_pope(text: str) -> str:
    """What an answer says for POPE's script (evaluate.py): "no", or "yes" for all the rest, even an empty text.

    >>> [read_as_pope(text) for text in ("No, a cat.", "There is not.", "NO", "There isn't", "")]
    ['no', 'no', 'yes', 'yes', 'yes']
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in words for word in ("No", "not", "no")) else "yes"


@benchmark("existence")
def existence(
    answers: Path | Sequence[Answer],
    annotations: Path | Sequence[YesNoQuestion] | None = None,
    *,
    read: Reader = read_yes_no,
    allow_missing: AllowMissing = False,
    name: str = "these questions",
) -> PlainResult:
    """Existence questions, with more tolerant reading of answers than POPE's script.

    The annotations are the questions with their label, yes or no; without them, the answers must have it.

    Example: mfpo eval existence answers.jsonl --annotations coco_pope_random.json --json existence.json

    Shares in percent, with "yes" as the positive class. Answers are read by `read`; one that is unreadable counts as
    wrong and as no "yes". Raises MfpoError when there is no question, or when answers are double, to other questions,
    of another label, or missing; `allow_missing` counts the missing instead, and only the others are scored. `name` is
    what an error calls the questions.
    """
    questions = load_questions(annotations) if isinstance(annotations, Path) else annotations
    if isinstance(answers, Path):
        answers = read_answers(answers) if questions is None else read_existence_answers(answers, questions)
    if questions is None:
        questions = questions_in(answers)
    if not questions:
        raise MfpoError("there is no question to score")
    asked = {question.question_id: asked_of(question) for question in questions}
    answers_by_id = check_asked(answers, asked, name, allow_missing=allow_missing)
    labels = {question.question_id: question.label for question in questions}
    wrong = [id for id, answer in answers_by_id.items() if answer.label not in (None, labels[id])]
    if wrong:
        raise MfpoError(
            f"{len(wrong)} of {len(answers_by_id)} answers have a different label from their question ({some(wrong)}); "
            f"give answers to {name}"
        )
    readings = {id: read(answer.text) for id, answer in answers_by_id.items()}
    facts = {
        "questions": len(readings),
        "unreadable": sum(reading is None for reading in readings.values()),
        "missing": len(questions) - len(readings),
    }
    return PlainResult(_tallies(readings, labels), facts | thinking(answers_by_id.values()))


def load_questions(path: Path) -> list[YesNoQuestion]:
    """Read POPE's questions: one a line, or a JSON list, with `question_id`, `image`, `text` and `label`.

    DASH-B (Augustin et al. 2025) calls them `question_id`, `image_path`, `question` and `answer`.

    Raises MfpoError that names the file and the line when one of them is missing or a question id comes twice.
    """
    questions: dict[str, YesNoQuestion] = {}
    for where, row in read_rows(path):
        if "question" in row and "answer" in row:
            row = {"text": row["question"], "label": row["answer"]} | row
        question_id, image = read_id(row, ("question_id",), where), read_id(row, ("image", "image_path"), where)
        text, label = row.get("text"), read_label(row, where)
        if question_id is None or image is None or label is None or not isinstance(text, str):
            raise MfpoError(f"{where}: is missing required fields: question_id, image, text and label")
        if question_id in questions:
            raise MfpoError(
                f"{where}: question_id {some([question_id])} appears a second time; give each question its own"
            )
        questions[question_id] = YesNoQuestion(question_id, image, text, label)
    return list(questions.values())


def read_existence_answers(path: Path, questions: Sequence[YesNoQuestion]) -> list[Answer]:
    """Read answers to POPE's questions; those of POPE's own files have their text under `answer`, and no ids.

    Such answers must be to all `questions`, in their order, and hold each the question's text. Raises MfpoError when
    they do not, and as `read_answers`.
    """
    answers = read_answers(path, by_place=True, keys=(*TEXT_KEYS, "answer"))
    if any(answer.question_id for answer in answers) or not questions:
        return answers
    if len(answers) != len(questions):
        fault = f"there are {len(answers)} answers to {len(questions)} questions"
    else:
        pairs = enumerate(zip(answers, questions, strict=True), start=1)
        wrong = [
            str(number) for number, pair in pairs if pair[0].prompt is None or is_another(pair[0], asked_of(pair[1]))
        ]
        fault = f"answer {some(wrong)} does not match the question at its position" if wrong else ""
    if fault:
        raise MfpoError(
            f"{path}: answers without question_id are matched by position, but {fault}; "
            "give the answers in the order of the questions, each with its question, or add question_id"
        )
    return [
        replace(answer, question_id=question.question_id) for answer, question in zip(answers, questions, strict=True)
    ]


def asked_of(question: YesNoQuestion) -> Asked:
    """What an answer to the question may name as its prompt and image."""
    return Asked(question.text, (question.image,))


def questions_in(answers: Sequence[Answer]) -> list[YesNoQuestion]:
    """The questions of answers that bring their own labels. Raises MfpoError when one has no label."""
    missing = [str(answer.question_id) for answer in answers if answer.label is None]
    if missing:
        raise MfpoError(f"question {some(missing)}: no label in the answers; give the questions with --annotations")
    return [
        YesNoQuestion(str(answer.question_id), answer.image_id or "", answer.prompt or "", str(answer.label))
        for answer in answers
    ]


def _tallies(readings: Mapping[str, str | None], labels: Mapping[str, str]) -> dict[str, Tally]:
    """Each figure as parts of wholes, question by question; F1 is 2 TP / (2 TP + FP + FN)."""
    parts: dict[str, dict[str, tuple[float, ...]]] = {
        "accuracy": {}, "precision": {}, "recall": {}, "f1": {}, "yes_ratio": {}
    }  # fmt: skip
    for name, reading in readings.items():
        says_yes, true = reading == "yes", labels[name] == "yes"
        both = says_yes and true
        parts["accuracy"][name] = reading == labels[name], 1
        parts["precision"][name] = both, says_yes
        parts["recall"][name] = both, true
        parts["f1"][name] = 2 * both, says_yes + true
        parts["yes_ratio"][name] = says_yes, 1
    return {name: Tally(units) for name, units in parts.items()}
