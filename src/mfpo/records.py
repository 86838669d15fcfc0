"""The preference record: its columns, its validation, and a dataset of such records.

A record is a row of a Hugging Face dataset with the column names that TRL and ms-swift use. Images travel encoded
(`{"bytes", "path"}`), so that a file on disk goes into the dataset untouched.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mfpo.errors import MfpoError, RecordError, first_line
from mfpo.folders import check_shards
from mfpo.masks import RLE


class Message(TypedDict):
    role: str
    content: str


class EncodedImage(TypedDict):
    bytes: bytes
    path: str | None


class NamedMask(TypedDict):
    name: str
    mask: RLE


class Keyword(TypedDict):
    text: str
    score: float


class Region(TypedDict):
    """Where a keyword was found; `image` counts the record's images from 0."""

    keyword: str
    score: float
    mask: RLE
    image: int


class Corruption(TypedDict):
    """How the rejected images were made; `fallback` says that no keyword found a region."""

    kind: str
    schedule: str
    step: int
    seed: int
    fallback: bool


class Origin(TypedDict):
    dataset: str
    row: int


class ClaimRow(TypedDict):
    """What `text[start:end]` of an answer claims, and whether it is so: "true", "false" or "unknown".

    `object` is the thing that is said to be there, or a statement; `answer` is "chosen" or "rejected".
    """

    answer: str
    start: int
    end: int
    object: str
    verdict: str


class SourceRecord(TypedDict):
    """A record from a source. `objects` are the dataset's own masks: None if it has none for any image.

    `claims` are those of both answers, None where nobody checked them. `rejected_images` and `counter`, the right
    answer to them (y'), are those that the data brings, or None.
    """

    id: str
    images: list[EncodedImage]
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    rejected_images: list[EncodedImage] | None
    counter: list[Message] | None
    objects: list[NamedMask] | None
    claims: list[ClaimRow] | None
    source: Origin


class Record(TypedDict):
    """A record written by `mfpo build`: with the rejected images m' and how they were made.

    `counter` is the right answer to m', where it is known.
    """

    id: str
    images: list[EncodedImage]
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    rejected_images: list[EncodedImage]
    counter: list[Message] | None
    objects: list[NamedMask] | None
    claims: list[ClaimRow] | None
    source: Origin
    keywords: list[Keyword]
    regions: list[Region]
    corruption: Corruption


_MESSAGES = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
_RLE = {"size": datasets.List(datasets.Value("int32")), "counts": datasets.Value("string")}

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "images": datasets.List(datasets.Image()),
        "prompt": _MESSAGES,
        "chosen": _MESSAGES,
        "rejected": _MESSAGES,
        "rejected_images": datasets.List(datasets.Image()),
        "counter": _MESSAGES,
        "keywords": datasets.List({"text": datasets.Value("string"), "score": datasets.Value("float64")}),
        "regions": datasets.List(
            {
                "keyword": datasets.Value("string"),
                "score": datasets.Value("float64"),
                "mask": _RLE,
                "image": datasets.Value("int32"),
            }
        ),
        "corruption": {
            "kind": datasets.Value("string"),
            "schedule": datasets.Value("string"),
            "step": datasets.Value("int32"),
            "seed": datasets.Value("int64"),
            "fallback": datasets.Value("bool"),
        },
        "objects": datasets.List({"name": datasets.Value("string"), "mask": _RLE}),
        "claims": datasets.List(
            {
                "answer": datasets.Value("string"),
                "start": datasets.Value("int32"),
                "end": datasets.Value("int32"),
                "object": datasets.Value("string"),
                "verdict": datasets.Value("string"),
            }
        ),
        "source": {"dataset": datasets.Value("string"), "row": datasets.Value("int64")},
    }
)

_SURROGATE = re.compile("[\ud800-\udfff]")

# Where a text has an image; LLaVA's data began it.
IMAGE_PLACE = "<image>"

# How messages and provenance call a dataset that is in no folder.
IN_MEMORY = "the dataset in memory"

# The corruptions that add noise, as much as their `step` says.
NOISY = ("region", "global", "random")

# How to get a column that `mfpo build` fills only sometimes.
_HOW = {
    "counter": "it holds the right answer to the rejected image: run `mfpo build` with corruption=given on data that "
    "has it, or on the picture book with corruption=counterfactual"
}

# A record needs these to train with any method.
TEXT_COLUMNS = ("id", "images", "prompt", "chosen", "rejected")


def new_record(
    *,
    id: object,
    images: Sequence[EncodedImage],
    question: object,
    chosen: object,
    rejected: object,
    source: Origin,
    objects: Sequence[NamedMask] | None = None,
    rejected_images: Sequence[EncodedImage] | None = None,
    counter: str | None = None,
    claims: Sequence[ClaimRow] | None = None,
) -> SourceRecord:
    """Make a record from one question and two answers.

    Raises RecordError that names the column when a text is missing, no string, blank or not to be written to a file,
    when chosen equals rejected, when there is no image, or the question has places for more or fewer (`place_images`).
    """
    if not is_text(str(id)):
        raise RecordError("column 'id' holds an unpaired surrogate, which cannot be stored as UTF-8")
    texts = {"question": question, "chosen": chosen, "rejected": rejected}
    for column, text in texts.items():
        if text is None:
            raise RecordError(f"column {column!r} is missing")
        if not isinstance(text, str):
            raise RecordError(f"column {column!r} is {type(text).__name__}, but must be a string")
        if not is_text(text):
            raise RecordError(f"column {column!r} holds an unpaired surrogate, which cannot be stored as UTF-8")
        if not without_places(text):
            raise RecordError(f"column {column!r} is empty")
    answers = [without_places(str(text)) for text in (chosen, rejected)]
    if answers[0] == answers[1]:
        raise RecordError("columns 'chosen' and 'rejected' are equal, so they express no preference")
    if not images:
        raise RecordError("column 'images' is empty")
    return SourceRecord(
        id=str(id),
        images=list(images),
        prompt=place_images([Message(role="user", content=str(question))], len(images)),
        chosen=[{"role": "assistant", "content": answers[0]}],
        rejected=[{"role": "assistant", "content": answers[1]}],
        rejected_images=None if rejected_images is None else list(rejected_images),
        counter=None if counter is None else [{"role": "assistant", "content": counter}],
        objects=None if objects is None else list(objects),
        claims=None if claims is None else list(claims),
        source=source,
    )


def without_places(text: str) -> str:
    """The text without places for images, and without white space around it."""
    return text.replace(IMAGE_PLACE, "").strip()


def without_images(prompt: Sequence[Message]) -> list[Message]:
    """The prompt without places for images."""
    return [Message(role=message["role"], content=without_places(message["content"])) for message in prompt]


def place_images(prompt: Sequence[Message], images: int) -> list[Message]:
    """`prompt` with `<image>` where its images stand, or without where they stand before the text.

    That is where a chat template puts images of its own accord. A single image at the end of the first turn goes there
    too, as LLaVA's own loader has it. Raises RecordError when there are places, but not one for each image.
    """
    places = sum(message["content"].count(IMAGE_PLACE) for message in prompt)
    if places not in (0, images):
        raise RecordError(f"<image> occurs {places} times in the prompt, but the number of images is {images}")
    first = next((message["content"].strip() for message in prompt if message["role"] == "user"), "")
    text = re.sub(rf"^(?:{IMAGE_PLACE}|\s)+", "", first)
    is_before = first.count(IMAGE_PLACE) == places and IMAGE_PLACE not in text
    is_after = places == 1 and first.endswith(IMAGE_PLACE)
    tidy = without_places if is_before or is_after else str.strip
    return [Message(role=message["role"], content=tidy(message["content"])) for message in prompt]


def content_parts(text: str) -> list[dict[str, str]]:
    """What a chat template takes for a text: it is cut at each `<image>`, where an image stands.

    >>> content_parts("In <image> I see")
    [{'type': 'text', 'text': 'In '}, {'type': 'image'}, {'type': 'text', 'text': ' I see'}]
    """
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE_PLACE)):
        parts += [{"type": "image"}] * (number > 0)
        parts += [{"type": "text", "text": piece}] * bool(piece)
    return parts


def is_text(value: object) -> bool:
    """Whether it is a string that a file can hold; an unpaired surrogate, which JSON can spell, cannot be stored."""
    return isinstance(value, str) and not _SURROGATE.search(value)


def answer_text(messages: Sequence[Message]) -> str:
    """The text of an answer, or of a prompt with one turn."""
    return " ".join(message["content"] for message in messages)


def read_dataset(data: str | Path | datasets.Dataset, needs: Sequence[str] = TEXT_COLUMNS) -> datasets.Dataset:
    """Open a folder that `mfpo build` or `mfpo rank` wrote, or check a dataset in memory.

    Rows without an `id` get their number as one. Raises MfpoError when the folder holds no readable shards, when there
    are no rows, when one of the columns in `needs` is missing, holds another thing than it should or nothing in a row,
    or when a row has not one rejected image an image.
    """
    if isinstance(data, str | Path):
        dataset, where = _open_shards(Path(data)), str(data)
    elif isinstance(data, datasets.Dataset):
        dataset, where = data, IN_MEMORY
    else:
        raise MfpoError(f"the data is a {type(data).__name__}; give a folder, or a datasets.Dataset (one split)")
    if not len(dataset):
        raise MfpoError(f"{where} holds no records")
    if "id" not in dataset.column_names:
        dataset = dataset.add_column("id", [str(row) for row in range(len(dataset))])
    _check_columns(dataset, where, needs)
    has_pairs = {"images", "rejected_images"} <= set(dataset.column_names)
    checked = {*needs, "images", "rejected_images"} if has_pairs else needs
    start = 0
    for table in dataset.select_columns(list(checked)).with_format("arrow").iter(batch_size=256):
        for name in needs:
            how = _HOW.get(name, "build it again")
            _refuse(pc.is_null(table[name]), where, start, f"column {name} is empty; {how}")
        if has_pairs:
            lengths = (pc.list_value_length(table[name]) for name in ("images", "rejected_images"))
            _refuse(
                pc.not_equal(*lengths), where, start, "column rejected_images is not as long as images; build it again"
            )
        start += len(table)
    return dataset


def _check_columns(dataset: datasets.Dataset, where: str, needs: Sequence[str]) -> None:
    """Raises MfpoError when a column is missing or holds another kind of thing than it should."""
    missing = [name for name in needs if name not in dataset.column_names]
    if missing:
        command = "rank" if set(missing) <= {"entropy", "level"} else "build"
        how = (
            _HOW.get(missing[0], f"run `mfpo {command}` first") if len(missing) == 1 else f"run `mfpo {command}` first"
        )
        raise MfpoError(f"{where}: column {', '.join(missing)} is missing; {how}")
    for name in needs:
        item = getattr(dataset.features[name], "feature", None)
        if name in ("images", "rejected_images") and not isinstance(item, datasets.Image):
            raise MfpoError(f"{where}: column {name} must hold lists of images, as in datasets.List(Image())")
        is_message = isinstance(item, dict) and {"role", "content"} <= item.keys()
        if name in ("prompt", "chosen", "rejected", "counter") and not is_message:
            raise MfpoError(
                f'{where}: column {name} must hold lists of messages, as in [{{"role": ..., "content": text}}]'
            )


def _open_shards(folder: Path) -> datasets.Dataset:
    check_shards(folder)
    shards = sorted(map(str, folder.glob("*.parquet")))
    try:
        if not any(pq.read_metadata(shard).num_rows for shard in shards):
            raise MfpoError(f"{folder}: holds no records; build it again")
        return datasets.Dataset.from_parquet(shards)
    except (pa.ArrowInvalid, datasets.exceptions.DatasetGenerationError) as error:
        reason = first_line(error.__cause__ or error)
        raise MfpoError(f"{folder}: its Parquet shards cannot be read ({reason}); build it again") from None


def _refuse(is_wrong: pa.ChunkedArray, where: str, start: int, fault: str) -> None:
    """Raise MfpoError that names the first row that is wrong; `start` is the number of the first."""
    row = pc.index(is_wrong, True).as_py()
    if row >= 0:
        raise MfpoError(f"{where}, row {start + row}: {fault}")


def column(dataset: datasets.Dataset, name: str) -> list[Any]:
    """A whole column as a list, without decoding the images of the others."""
    return list(dataset.select_columns([name])[name])


def dataset_hash(dataset: datasets.Dataset) -> str:
    """A hash of all that a dataset in memory holds, however it was made."""
    digest = hashlib.sha256()
    for table in dataset.with_format("arrow").iter(batch_size=32):
        for record in table.to_pylist():
            digest.update(json.dumps(_content(record), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _content(value: Any) -> Any:
    """A value of a row with the hash of each image in the image's place."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        content = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
        return hashlib.sha256(content).hexdigest()
    if isinstance(value, dict):
        return {name: _content(part) for name, part in value.items()}
    return [_content(part) for part in value] if isinstance(value, list) else value
