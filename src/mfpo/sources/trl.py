"""TRL's vision preference format: `images`, `prompt`, `chosen`, `rejected`, as messages or as plain texts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mfpo.errors import RecordError
from mfpo.records import (
    EncodedImage,
    Message,
    NamedMask,
    Origin,
    SourceRecord,
    answer_text,
    check_image,
    load_image,
    new_record,
)
from mfpo.sources.files import check_row, read_rows

ROLES = ("system", "user", "assistant")


class TrlSource:
    """The rows of Parquet or JSONL `files`; images are embedded, or paths below `folder`. `id` may be absent."""

    format = "trl"
    columns = ("images", "prompt", "chosen", "rejected")

    def __init__(self, path: Path, files: Sequence[Path], folder: Path) -> None:
        self.name = path.name
        self._files = files
        self._folder = folder

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return read_rows(self._files, ("id", "objects", *self.columns))

    def record(self, row: dict[str, Any], number: int) -> SourceRecord:
        """Raises RecordError for a broken line, a missing or empty column, and an image that cannot be read."""
        check_row(row)
        prompt = read_messages(row, "prompt", role="user")
        images = row.get("images")
        if not isinstance(images, list):
            raise RecordError("column 'images' is missing" if images is None else "column 'images' is no list")
        record = new_record(
            id=number if row.get("id") in (None, "") else row["id"],
            images=[read_image(image, self._folder, f"images[{i}]") for i, image in enumerate(images)],
            question=answer_text(prompt),
            chosen=read_answer(row, "chosen"),
            rejected=read_answer(row, "rejected"),
            objects=read_objects(row.get("objects")),
            source=Origin(dataset=self.name, row=number),
        )
        record["prompt"] = prompt
        return record


def read_messages(row: dict[str, Any], column: str, *, role: str) -> list[Message]:
    """A column as messages; a plain text is one message of `role`, and the parts of a content are joined.

    Image placeholders are dropped: the images have their own column, and a chat template puts them in again.
    """
    value = row.get(column)
    if value is None:
        raise RecordError(f"column {column!r} is missing")
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise RecordError(f"column {column!r} is {type(value).__name__}, but must be a text or a list of messages")
    for message in value:
        if message.get("role") not in ROLES:
            raise RecordError(f"column {column!r} has role {message.get('role')!r}, but known are {', '.join(ROLES)}")
    return [Message(role=message["role"], content=_text(message.get("content"), column)) for message in value]


def read_answer(row: dict[str, Any], column: str) -> str:
    """The one answer in a column."""
    messages = read_messages(row, column, role="assistant")
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages) or "none"
        raise RecordError(f"column {column!r} has messages ({roles}), but must be one message of the assistant")
    return messages[0]["content"]


def _text(content: Any, column: str) -> str:
    if isinstance(content, list):
        texts = [part.get("text") or "" for part in content if isinstance(part, dict)]
        if not all(isinstance(text, str) for text in texts):
            raise RecordError(f"column {column!r} has a part whose text is no text")
        content = " ".join(texts)
    if not isinstance(content, str):
        raise RecordError(f"column {column!r} has a message without content")
    return content.replace("<image>", "").strip()


def read_image(image: Any, folder: Path, name: str) -> EncodedImage:
    """An image of a row: embedded as {"bytes", "path"}, or a path below `folder`."""
    if isinstance(image, dict) and image.get("bytes"):
        if not isinstance(image["bytes"], bytes):
            raise RecordError(f"image {name!r} holds its bytes as text, which JSON cannot carry; give a path")
        return check_image(image["bytes"], str(image.get("path") or name))
    return load_image(folder, image.get("path") if isinstance(image, dict) else image)


def read_objects(objects: Any) -> list[NamedMask] | None:
    """The masks that `mfpo build` keeps in column `objects`; None for a foreign column of that name.

    Raises RecordError for an object without a name or a whole mask.
    """
    is_ours = isinstance(objects, list) and all(isinstance(o, dict) and o.keys() == {"name", "mask"} for o in objects)
    if not is_ours:
        return None
    for number, found in enumerate(objects):
        mask = found["mask"]
        is_whole = isinstance(mask, dict) and isinstance(mask.get("counts"), str) and _is_size(mask.get("size"))
        if not is_whole or not isinstance(found["name"], str):
            raise RecordError(f"objects[{number}] needs a name and a mask with size [height, width] and counts")
    return [NamedMask(name=found["name"], mask=found["mask"]) for found in objects]


def _is_size(size: Any) -> bool:
    return isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)
