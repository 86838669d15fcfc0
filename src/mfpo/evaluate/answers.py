"""A model's answers: files as written by this package, LLaVA, AMBER, CHAIR, lmms-eval and VLMEvalKit."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mfpo.answer.replies import begins_with, without_thoughts
from mfpo.errors import MfpoError, brief
from mfpo.evaluate.other_tools import read_result_rows
from mfpo.files import read_id, read_label, some
from mfpo.image_names import image_key

# The first key that a row has counts: ours and LLaVA's, then AMBER's and CHAIR's; MMHal-Bench's file has a place of
# its own for the answer.
_QUESTION_KEYS = ("question_id", "id")
_IMAGE_KEYS = ("image_id", "image")
TEXT_KEYS = ("model_answer", "text", "response", "caption")
_EXTENSION = re.compile(r"\.(?:jpe?g|png|webp|bmp|gif|tiff?)$", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """One answer; `question_id` or `image_id` is given, and `label` where the row brings the true "yes" or "no".

    `failed` means that the question was asked, and that an error came back; `thinking`, that the row also holds the
    model's thoughts, which are no part of `text`.
    """

    question_id: str | None
    image_id: str | None
    prompt: str | None
    text: str
    label: str | None = None
    failed: bool = False
    thinking: bool = False


class Asked(NamedTuple):
    """A benchmark's question and the names of its image; "" and () where an answer may have any."""

    text: str = ""
    images: tuple[str, ...] = ()


def read_answers(path: Path, *, by_place: bool = False, keys: Sequence[str] = TEXT_KEYS) -> list[Answer]:
    """Read one answer a line, or a JSON list. An empty text is an answer too: the model had nothing to say.

    The text stands under the first of `keys` that a row has: `text` (ours, LLaVA), `response` (AMBER), `caption`
    (CHAIR) or `model_answer` (MMHal-Bench); thoughts are left out of it (`without_thoughts`). The ids stand under
    `question_id` or `id`, and `image_id` or `image`; `by_place` takes rows without any, too. A row with an `error` has
    failed. `read_result_rows` says how results of lmms-eval and VLMEvalKit are read. Raises MfpoError that names the
    file and the line.
    """
    return [answer for answer, _ in read_answer_rows(path, by_place=by_place, keys=keys)]


def read_answer_rows(
    path: Path, *, by_place: bool = False, keys: Sequence[str] = TEXT_KEYS
) -> list[tuple[Answer, dict[str, Any]]]:
    """The answers as `read_answers`, each with its row of `read_result_rows`."""
    return [(_answer(row, where, by_place, keys), row) for where, row in read_result_rows(path)]


def thinking(answers: Iterable[Answer]) -> dict[str, int]:
    """How many of the answers hold thoughts, as `thinking`; nothing where none does."""
    count = sum(answer.thinking for answer in answers)
    return {"thinking": count} if count else {}


def judged_counts(given: Mapping[str, Answer], asked: int, unreadable: Sequence[str]) -> dict[str, Any]:
    """The counts of a benchmark with a judge, of whose verdicts on `given` some are unreadable."""
    return {
        "answers": len(given),
        "missing": asked - len(given),
        "empty": sum(not answer.text.strip() for answer in given.values()),
        **thinking(given.values()),
        "unreadable": len(unreadable),
        "unreadable_questions": list(unreadable),
    }


def check_asked(
    answers: Sequence[Answer], asked: Mapping[str, Asked], benchmark: str, *, allow_missing: bool = False
) -> dict[str, Answer]:
    """The answers by question id, without those that failed.

    Raises MfpoError, with the first offenders, when an answer is to a question that is not `asked`, is a second one,
    or has another image or prompt than its question, and when questions have no answer or failed; `allow_missing`
    lets these pass.
    """
    if not answers:
        raise MfpoError("there is no answer to score")
    nameless = sum(answer.question_id is None for answer in answers)
    if nameless:
        raise MfpoError(f"{nameless} of {len(answers)} answers have no question_id; give one in each row")
    wrong = [
        str(answer.question_id) for answer in answers if is_another(answer, asked.get(str(answer.question_id), Asked()))
    ]
    if wrong:
        raise MfpoError(
            f"{len(wrong)} of {len(answers)} answers have a different image or prompt from their question "
            f"({some(wrong)}); give answers to {benchmark}"
        )
    counts = Counter(str(answer.question_id) for answer in answers)
    faults = {
        "not in the questions": [name for name in counts if name not in asked],
        "answered more than once": [name for name in counts if counts[name] > 1],
        "without an answer": [] if allow_missing else [name for name in asked if name not in counts],
    }
    complaints = [f"{len(names)} {fault} ({some(names)})" for fault, names in faults.items() if names]
    if complaints:
        hint = ", or score the others with allow_missing=true" if faults["without an answer"] else ""
        raise MfpoError(f"question ids: {'; '.join(complaints)}; give one answer to each question of {benchmark}{hint}")
    return {str(answer.question_id): answer for answer in answered(answers, allow_missing=allow_missing)}


def answered(answers: Sequence[Answer], *, allow_missing: bool) -> list[Answer]:
    """The answers without those that failed. Raises MfpoError for these unless `allow_missing`, or if all failed."""
    failed = [str(answer.question_id or answer.image_id) for answer in answers if answer.failed]
    if failed and (not allow_missing or len(failed) == len(answers)):
        raise MfpoError(
            f"{len(failed)} of {len(answers)} questions have an error instead of an answer ({some(failed)}); ask them "
            "again with `mfpo answer --retry-failed`, or score the others with allow_missing=true"
        )
    return [answer for answer in answers if not answer.failed]


def check_captions(texts: Iterable[str]) -> None:
    """Raise MfpoError when none describes anything: all that are not empty begin with yes or no."""
    non_empty = [text for text in texts if text.strip()]
    if non_empty and all(map(begins_with, non_empty)):
        raise MfpoError(f"all {len(non_empty)} answers begin with yes or no, and none is a caption; give descriptions")


def _answer(row: dict[str, Any], where: str, by_place: bool, keys: Sequence[str]) -> Answer:
    question_id = read_id(row, _QUESTION_KEYS, where)
    image_id = read_id(row, _IMAGE_KEYS, where)
    if question_id is None and image_id is None and not by_place:
        raise MfpoError(f"{where}: has no id; give one of {', '.join(_QUESTION_KEYS + _IMAGE_KEYS)}")
    failed = bool(row.get("error"))
    text = "" if failed else next((row[key] for key in keys if key in row), None)
    if not isinstance(text, str):
        raise MfpoError(f"{where}: has no text; give the answer under one of {', '.join(keys)}")
    prompt = row.get("prompt", row.get("question"))
    if not isinstance(prompt, str | None):
        raise MfpoError(f"{where}: prompt is {brief(prompt)}, but must be a string")
    final_text = without_thoughts(text)
    return Answer(
        question_id, image_id, prompt, final_text, read_label(row, where), failed, thinking=final_text != text
    )


def is_another(answer: Answer, asked: Asked) -> bool:
    """Benchmarks number their questions alike, so that only image and prompt tell whose answers these are."""
    images = [stem(image) for image in asked.images]
    if answer.image_id is not None and images and stem(answer.image_id) not in images:
        return True
    return answer.prompt is not None and plain(asked.text) not in plain(answer.prompt)


def stem(image: str) -> str:
    """The name of an image without folder and extension."""
    return _EXTENSION.sub("", Path(image_key(image)).name)


def plain(prompt: str) -> str:
    """The words of a prompt; LLaVA's files write the image's place, which ours leave to the chat template.

    POPE's first files have "imange" in some questions.
    """
    return " ".join(prompt.replace("<image>", " ").replace("imange", "image").split())
