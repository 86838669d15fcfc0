"""What a model answered: JSONL or JSON files as this package, LLaVA, AMBER and CHAIR write them."""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mfpo.errors import MfpoError, brief

# The first key that a row has counts: ours and LLaVA's, then AMBER's and CHAIR's; MMHal-Bench's file has a place of
# its own for the answer.
_QUESTION_KEYS = ("question_id", "id")
_IMAGE_KEYS = ("image_id", "image")
_TEXT_KEYS = ("model_answer", "text", "response", "caption")

# What Python refuses to read though it is JSON.
_TOO_LARGE = "holds a number of thousands of digits, or brackets within brackets without end; write plain JSON"

_YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)

# "COCO_val2014_000000310196.jpg", "val2017/000000310196.jpg" and 310196 are one image.
_COCO_IMAGE = re.compile(
    r"(?:(?:.*/)?COCO_[a-z]+\d{4}_|(?:.*/)?(?:train|val|test)\d{4}/)?0*(\d+)(?:\.(?:jpg|jpeg|png))?", re.IGNORECASE
)


@dataclass(frozen=True)
class Answer:
    """One answer; `question_id` or `image_id` is given, and `label` where the row brings the true "yes" or "no".

    `failed` means that the question was asked, and that an error came back.
    """

    question_id: str | None
    image_id: str | None
    prompt: str | None
    text: str
    label: str | None = None
    failed: bool = False


class Asked(NamedTuple):
    """A benchmark's question and the names of its image; "" and () where an answer may have any."""

    text: str = ""
    images: tuple[str, ...] = ()


def read_answers(path: Path, *, by_place: bool = False) -> list[Answer]:
    """Read one answer a line, or a JSON list. An empty text is an answer too: the model had nothing to say.

    The text stands under `text` (ours, LLaVA), `response` (AMBER), `caption` (CHAIR) or `model_answer` (MMHal-Bench),
    the ids under `question_id` or `id`, and `image_id` or `image`; `by_place` takes rows without any, too. A row with
    an `error` has failed. Raises MfpoError that names the file and the line.
    """
    return [_answer(row, where, by_place) for where, row in read_rows(path)]


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, or of a list in a .json file (`.gz` too), each with the words that say where it is.

    Raises MfpoError when the file is missing, unreadable or empty, or when a line or an entry is no JSON object.
    """
    if read_text(path).lstrip().startswith("["):
        yield from _entries(path)
        return
    count = 0
    # Not splitlines: a text may hold other line separators (U+2028), which JSON need not escape.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise MfpoError(f"{where}: not valid JSON ({error.msg}); write one JSON object a line") from None
        except (ValueError, RecursionError):
            raise MfpoError(f"{where}: {_TOO_LARGE}") from None
        if not isinstance(row, dict):
            raise MfpoError(f"{where}: holds a {type(row).__name__}; write one JSON object a line")
        count += 1
        yield where, row
    if count == 0:
        raise MfpoError(f"{path}: is empty; give a file with one JSON object a line")


def read_json(path: Path) -> Any:
    """The value of a JSON file (`.gz` too). Raises MfpoError when the file is missing, unreadable or no JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise MfpoError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); a file with one object a line is named .jsonl"
        ) from None
    except (ValueError, RecursionError):
        raise MfpoError(f"{path}: {_TOO_LARGE}") from None


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
    wrong = [str(one.question_id) for one in answers if is_another(one, asked.get(str(one.question_id), Asked()))]
    if wrong:
        raise MfpoError(
            f"{len(wrong)} of {len(answers)} answers have another image or prompt than their question ({some(wrong)}); "
            f"give answers to {benchmark}"
        )
    counts = Counter(str(answer.question_id) for answer in answers)
    faults = {
        "not in the questions": [name for name in counts if name not in asked],
        "answered more than once": [name for name in counts if counts[name] > 1],
        "without an answer": [] if allow_missing else [name for name in asked if name not in counts],
    }
    found = [f"{len(names)} {fault} ({some(names)})" for fault, names in faults.items() if names]
    if found:
        hint = ", or score the others with --allow-missing" if faults["without an answer"] else ""
        raise MfpoError(f"question ids: {'; '.join(found)}; give one answer to each question of {benchmark}{hint}")
    return {str(answer.question_id): answer for answer in answered(answers, allow_missing=allow_missing)}


def answered(answers: Sequence[Answer], *, allow_missing: bool) -> list[Answer]:
    """The answers without those that failed. Raises MfpoError for these unless `allow_missing`, or if all failed."""
    failed = [str(answer.question_id or answer.image_id) for answer in answers if answer.failed]
    if failed and (not allow_missing or len(failed) == len(answers)):
        raise MfpoError(
            f"{len(failed)} of {len(answers)} questions have an error instead of an answer ({some(failed)}); ask them "
            "again with `mfpo answer --retry-failed`, or score the others with --allow-missing"
        )
    return [answer for answer in answers if not answer.failed]


def check_captions(texts: Iterable[str]) -> None:
    """Raise MfpoError when none describes anything: all that are not empty begin with yes or no."""
    said = [text for text in texts if text.strip()]
    if said and all(map(_YES_NO.match, said)):
        raise MfpoError(f"all {len(said)} answers begin with yes or no, and none is a caption; give descriptions")


def image_key(image: str) -> str:
    """The name under which images are compared: COCO's number without leading zeros, other names as they are.

    >>> image_key("COCO_val2014_000000310196.jpg"), image_key("val2017/000000310196.jpg"), image_key("310196")
    ('310196', '310196', '310196')
    >>> image_key("kitchen/1.jpg"), image_key("scene_007.png")
    ('kitchen/1.jpg', 'scene_007.png')
    """
    match = _COCO_IMAGE.fullmatch(image)
    return match.group(1) if match else image


def read_id(row: dict[str, Any], keys: tuple[str, ...], where: str) -> str | None:
    """The first of `keys` that `row` has, as a text; ids may be texts or whole numbers, and null counts as absent.

    Raises MfpoError when it is anything else.
    """
    key = next((key for key in keys if row.get(key) is not None), None)
    if key is None:
        return None
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise MfpoError(f"{where}: {key} is {brief(value)}, but must be a text or a whole number")
    return str(value)


def read_label(row: dict[str, Any], where: str) -> str | None:
    """The true answer, "yes" or "no" in any case, or None. Raises MfpoError when it is anything else."""
    label = row.get("label")
    if label is None:
        return None
    if not isinstance(label, str) or label.lower() not in ("yes", "no"):
        raise MfpoError(f'{where}: label is {brief(label)}, but must be "yes" or "no"')
    return label.lower()


def some(names: Sequence[str]) -> str:
    """The first three of `names` and how many more there are, for an error message."""
    return ", ".join(name[:40] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _answer(row: dict[str, Any], where: str, by_place: bool) -> Answer:
    question_id = read_id(row, _QUESTION_KEYS, where)
    image_id = read_id(row, _IMAGE_KEYS, where)
    if question_id is None and image_id is None and not by_place:
        raise MfpoError(f"{where}: has no id; give one of {', '.join(_QUESTION_KEYS + _IMAGE_KEYS)}")
    failed = bool(row.get("error"))
    text = "" if failed else next((row[key] for key in _TEXT_KEYS if key in row), None)
    if not isinstance(text, str):
        raise MfpoError(f"{where}: has no text; give the answer under one of {', '.join(_TEXT_KEYS)}")
    prompt = row.get("prompt", row.get("question"))
    if not isinstance(prompt, str | None):
        raise MfpoError(f"{where}: prompt is {brief(prompt)}, but must be a text")
    return Answer(question_id, image_id, prompt, text, read_label(row, where), failed)


def is_another(answer: Answer, asked: Asked) -> bool:
    """Benchmarks number their questions alike, so that only image and prompt tell whose answers these are."""
    images = [_stem(image) for image in asked.images]
    if answer.image_id is not None and images and _stem(answer.image_id) not in images:
        return True
    return answer.prompt is not None and plain(asked.text) not in plain(answer.prompt)


def _stem(image: str) -> str:
    return Path(image_key(image)).stem


def plain(prompt: str) -> str:
    """The words of a prompt; LLaVA's files write the image's place, which ours leave to the chat template."""
    return " ".join(prompt.replace("<image>", " ").split())


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    entries = read_json(path)
    if not entries:
        raise MfpoError(f"{path}: is an empty list; give a file with one JSON object an answer")
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict):
            raise MfpoError(f"{where}: is a {type(entry).__name__}; give one JSON object an answer")
        yield where, entry


def read_text(path: Path) -> str:
    """The text of a file (`.gz` too). Raises MfpoError when it is missing or no UTF-8."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except OSError as error:
        raise MfpoError(f"{path}: cannot be read ({error.strerror or error}); give an existing file") from None
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise MfpoError(f"{path}: cannot be read ({error}); give it as UTF-8 text, or whole if gzipped") from None
