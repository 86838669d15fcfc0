"""Answers to AMBER, also those of lmms-eval and VLMEvalKit, which do not write AMBER's ids."""

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer, plain, read_answer_rows, stem
from mfpo.files import some

if TYPE_CHECKING:
    from mfpo.evaluate.amber import AmberQuestion

Questions = Mapping[str, "AmberQuestion"]


def read_amber_answers(path: Path, questions: Questions) -> list[Answer]:
    """The answers, with AMBER's ids.

    A sample of lmms-eval's `amber_g` is to the description in its place, and must name the objects in its image as
    `target`. A prediction of VLMEvalKit is to the question with its image and its words. Raises MfpoError when a row
    is to none, and as `read_answers`.
    """
    ids: defaultdict[tuple[str, str], deque[str]] = defaultdict(deque)
    for id, question in questions.items():
        ids[stem(question.image), _words(question.text)].append(id)
    answers: list[Answer] = []
    lost: list[str] = []
    for answer, row in read_answer_rows(path):
        question_id = answer.question_id
        if "doc_id" in row:
            question_id = _in_place(row, questions)
        elif row.get("category") and "index" in row:
            # Ten questions come twice, with one answer and kind, so that any of the two will do.
            same = ids[stem(answer.image_id or ""), _words(answer.prompt or "")]
            question_id = same.popleft() if same else None
        if question_id is None:
            lost.append(str(answer.question_id))
        answers.append(replace(answer, question_id=question_id))
    if lost:
        raise MfpoError(
            f"{path}: {len(lost)} of {len(answers)} rows ({some(lost)}) match no question of AMBER, by position and "
            "`target` (lmms-eval) or by `image_path` and question (VLMEvalKit); give answers to amber_g or AMBER"
        )
    return answers


def _in_place(row: Mapping[str, Any], questions: Questions) -> str | None:
    """The id of the description in a sample's place, if `target` is its objects."""
    id = str(row["doc_id"] + 1) if isinstance(row["doc_id"], int) else ""
    return id if id in questions and str(list(questions[id].truth)) == row["target"] else None


def _words(text: str) -> str:
    """The question without what a tool writes behind it."""
    return plain(text).partition("?")[0]
