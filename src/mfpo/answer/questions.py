"""Questions about images, as benchmarks publish them."""

from collections.abc import Iterable, Iterator, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mfpo.answer.hallusion import hallusion_id, is_hallusion
from mfpo.errors import MfpoError, RecordError, brief
from mfpo.files import read_id, read_label, read_rows
from mfpo.images import bare_image, decode_image, embedded_name, load_image
from mfpo.records import Message, is_text, place_images, without_places

# LLaVA's and POPE's, AMBER's, MMHal-Bench's and HallusionBench's; the first that a row has counts.
_TEXT_KEYS = ("text", "query", "question")


class Question(TypedDict):
    """A question for a model; `image` is a file under the image folder, or base64; answers call it `name`."""

    question_id: str
    image: str
    text: str
    label: NotRequired[str]
    name: NotRequired[str]


def read_questions(source: Path | Iterable[Mapping[str, Any]], images: Path) -> list[Question]:
    """The questions of a JSONL file, a JSON list, or a list in memory; `label` where a row has one.

    Ids become texts; MMHal-Bench's questions, which have none, get their number from 0, and their image is the file
    that `image_src` ends with. HallusionBench's get the names of its script, and those without a figure are left out,
    with a warning. `name` is a row's `image_id` or the end of its `image_path`, or else a hash. Raises MfpoError when a
    row lacks a key, an id is duplicate, an image under `images` cannot be read, or a text has several placeholders.
    """
    questions: dict[str, Question] = {}
    seen: set[str] = set()
    faults = []
    without_figure = 0
    for number, (where, row) in enumerate(_rows(source)):
        if is_hallusion(row) and row.get("filename") is None:
            without_figure += 1
            continue
        question = read_question(row, number, where)
        question_id, image = question["question_id"], question["image"]
        if question_id in questions:
            raise MfpoError(
                f"{where}: question_id {brief(question_id)} appears a second time; give each question its own"
            )
        questions[question_id] = question
        if image in seen:
            continue
        try:
            decode_image(load_image(images, image))
        except RecordError as error:
            faults.append(f"{where}: {error}")
        seen.add(image)
    if faults:
        rest = f" (and {len(faults) - 1} more cannot be read)" if faults[1:] else ""
        raise MfpoError(faults[0] + rest)
    if without_figure:
        getLogger(__name__).warning(f"{without_figure} questions of HallusionBench have no figure and are not asked")
    return list(questions.values())


def _rows(source: Path | Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row with the words that say where it is."""
    if isinstance(source, Path):
        return read_rows(source)
    return ((f"question {number}", row) for number, row in enumerate(source, start=1))


def read_question(row: Mapping[str, Any], number: int, where: str) -> Question:
    """The question in row `number`. Raises MfpoError as `read_questions`, but looks at no image."""
    if "prompt" in row:
        raise MfpoError(f"{where}: is an answer, not a question; give the file of the questions")
    if is_hallusion(row):
        row = {"question_id": hallusion_id(row), "image": row["filename"], "question": row["question"]}
    source = row.get("image_src")
    if isinstance(source, str) and "image" not in row:
        row = {"question_id": number, "image": source.rpartition("/")[2], **row}
    question_id = read_id(dict(row), ("question_id", "id"), where)
    text = next((row[key] for key in _TEXT_KEYS if key in row), None)
    image = bare_image(row.get("image"))
    if question_id is None or not isinstance(text, str) or not text.strip() or not isinstance(image, str):
        raise MfpoError(f"{where}: a question needs question_id, image and text, none of them empty")
    if not without_places(text):
        raise MfpoError(f"{where}: the text is nothing but {brief(text)}; give a question")
    try:
        (message,) = place_images([Message(role="user", content=text)], 1)
    except RecordError as error:
        raise MfpoError(f"{where}: {error}; a question has one") from None
    # Half a surrogate pair cannot be sent.
    text = message["content"].encode(errors="replace").decode()
    question = Question(question_id=question_id, image=image, text=text)
    label, name = read_label(dict(row), where), embedded_name(image)
    if name is not None:
        question["name"] = read_id(dict(row), ("image_id", "image_path"), where) or name
    if label is not None:
        question["label"] = label
    if not all(map(is_text, question.values())):
        raise MfpoError(f"{where}: an id or the image holds an unpaired surrogate, which cannot be stored as UTF-8")
    return question
