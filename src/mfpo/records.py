"""The preference record: its columns and its validation.

A record is a row of a Hugging Face dataset with the column names that TRL and ms-swift use. Images travel encoded
(`{"bytes", "path"}`), so that a file on disk goes into the dataset untouched.
"""

import re
from collections.abc import Sequence
from typing import TypedDict

import datasets

from mfpo.errors import RecordError
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

# The corruptions that add noise, as much as their `step` says.
NOISY = ("region", "global", "random")


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
