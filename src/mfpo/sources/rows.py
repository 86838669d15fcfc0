"""What the formats share: the messages, the answers, the images and the masks of a row."""

from pathlib import Path
from typing import Any

from mfpo.errors import RecordError, brief
from mfpo.files import some
from mfpo.images import bare_image, check_image, decode_base64, embedded_name, load_image
from mfpo.masks import is_whole
from mfpo.records import IMAGE_PLACE, ClaimRow, EncodedImage, Message, NamedMask, answer_text, is_text, without_places

# The roles by the names that TRL, ms-swift and ShareGPT have for them; LLaVA-RLHF writes llava.
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "llava": "assistant",
}


def either(column: str) -> list[str]:
    """The names that `a or b` stands for: of two columns, one will do."""
    return column.split(" or ")


def pick(row: dict[str, Any], column: str) -> tuple[str, Any]:
    """The name and the value of a column; of `a or b` the first that is there."""
    for name in either(column):
        if row.get(name) is not None:
            return name, row[name]
    raise RecordError(f"column {' or '.join(map(repr, either(column)))} is missing")


def is_missing(value: object) -> bool:
    """Whether it is null, an empty text, or the NaN that a column of floats has in place of null."""
    return value is None or value == "" or value != value


def read_messages(row: dict[str, Any], column: str, *, role: str) -> list[Message]:
    """A column as messages; a plain text is one message of `role`, and the parts of a content are joined.

    A place for an image, as text or as a part, is `<image>`; in an answer it is dropped.
    """
    column, value = pick(row, column)
    if isinstance(value, str):
        value = {"role": role, "content": value}
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise RecordError(f"column {column!r} is {type(value).__name__}, but must be a string or a list of messages")
    return [_message(message, column) for message in messages]


def _message(message: Any, column: str) -> Message:
    if not isinstance(message, dict):
        raise RecordError(f"column {column!r} has a message of type {type(message).__name__}")
    role = message.get("role") or message.get("from")
    if not isinstance(role, str) or role not in ROLES:
        raise RecordError(f"column {column!r} has role {brief(role)}, but the known roles are {', '.join(ROLES)}")
    content = message.get("value") if message.get("content") is None else message["content"]
    text = _text(content, column)
    return Message(role=ROLES[role], content=without_places(text) if ROLES[role] == "assistant" else text.strip())


def _text(content: Any, column: str) -> str:
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text") or "", str) for part in content):
            raise RecordError(f"column {column!r} has a part whose text is not a string")
        content = " ".join(_part(part, column) for part in content)
    if not isinstance(content, str):
        raise RecordError(f"column {column!r} has a message without content")
    return content


def _part(part: dict[str, Any], column: str) -> str:
    """A part of a content: `<image>` for an image, as transformers, OpenAI and others write it, or its text."""
    # In Parquet every part has the keys of all, most of them null.
    if part.get("type") in ("image", "image_url") or any(part.get(key) is not None for key in ("image", "image_url")):
        return IMAGE_PLACE
    if not isinstance(part.get("text"), str):
        raise RecordError(f"column {column!r} has a part that is neither text nor an image ({brief(part)})")
    return str(part["text"])


def read_prompt(row: dict[str, Any], column: str) -> list[Message]:
    """The messages before the answer, which end with the user's."""
    return check_prompt(read_messages(row, column, role="user"), column)


def check_prompt(prompt: list[Message], column: str) -> list[Message]:
    """The prompt. Raises RecordError when it has no text, or does not end with the user's message."""
    if not without_places(answer_text(prompt)):
        raise RecordError(f"column {column!r} is empty")
    if prompt[-1]["role"] != "user":
        raise RecordError(f"column {column!r} must end with a user message before the answer")
    return prompt


def read_answer(row: dict[str, Any], column: str) -> str:
    """The one answer in a column."""
    messages = read_messages(row, column, role="assistant")
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = some([message["role"] for message in messages]) or "none"
        raise RecordError(f"column {column!r} has messages ({roles}), but must be one assistant message")
    if not messages[0]["content"]:
        raise RecordError(f"column {column!r} is empty")
    return messages[0]["content"]


def read_images(row: dict[str, Any], column: str, folder: Path, root: Path) -> list[EncodedImage]:
    """The images of a row, one or a list. Raises as `read_image`."""
    column, value = pick(row, column)
    if not isinstance(value, list):
        return [read_image(value, folder, str(row.get("image_path") or column), root)]
    if not value:
        raise RecordError(f"column {column!r} is empty")
    return [read_image(image, folder, f"{column}[{number}]", root) for number, image in enumerate(value)]


def read_rejected_images(row: dict[str, Any], folder: Path, root: Path) -> list[EncodedImage] | None:
    """The rejected images that a row brings, in `rejected_images`, or None. Raises as `read_image`."""
    return read_images(row, "rejected_images", folder, root) if row.get("rejected_images") else None


def read_counter(row: dict[str, Any]) -> str | None:
    """The right answer to a row's rejected images, in `counter`, or None; a foreign column of numbers is none."""
    return read_answer(row, "counter") if isinstance(row.get("counter"), str | list | dict) else None


def read_image(image: Any, folder: Path, name: str, root: Path | None = None) -> EncodedImage:
    """An image of a row: embedded as {"bytes", "path"} or as base64, by `name` if it has no path; or a path."""
    image = bare_image(image)
    if isinstance(image, str) and embedded_name(image):
        image = {"bytes": image}
    if not isinstance(image, dict):
        return load_image(folder, image, root)
    path, data = image.get("path") or name, image["bytes"]
    if not is_text(path):
        raise RecordError(f"image {brief(name)} has a path that is not a string")
    if isinstance(data, str):  # as JSON must
        data = decode_base64(data, path)
    if not isinstance(data, bytes):
        raise RecordError(f"image {brief(name)} holds its bytes as {type(data).__name__}; give them as base64")
    return check_image(data, path)


def read_objects(objects: Any) -> list[NamedMask] | None:
    """The masks that `mfpo build` keeps in column `objects`; None for a foreign column of that name.

    Raises RecordError for an object without a name or a whole mask.
    """
    is_ours = isinstance(objects, list) and all(isinstance(o, dict) and o.keys() == {"name", "mask"} for o in objects)
    if not is_ours:
        return None
    for number, entry in enumerate(objects):
        mask = entry["mask"]
        has_mask = isinstance(mask, dict) and is_text(mask.get("counts")) and _is_size(mask.get("size"))
        if not has_mask or not is_text(entry["name"]):
            raise RecordError(f"objects[{number}] needs a name and a mask with size [height, width] and counts")
        if not is_whole(mask):
            raise RecordError(f"objects[{number}] has a mask whose counts do not cover {mask['size']}")
    return [NamedMask(name=entry["name"], mask=entry["mask"]) for entry in objects]


def read_claims(claims: Any) -> list[ClaimRow] | None:
    """What `mfpo pairs` says of the answers in column `claims`; None for a foreign column of that name.

    Raises RecordError for a claim about no answer, at no place in it, or without an object and a verdict.
    """
    is_ours = isinstance(claims, list) and all(
        isinstance(claim, dict) and claim.keys() == ClaimRow.__annotations__.keys() for claim in claims
    )
    if not is_ours:
        return None
    for number, claim in enumerate(claims):
        start, end = claim["start"], claim["end"]
        has_place = type(start) is int and type(end) is int and 0 <= start <= end < 2**31
        is_told = claim["answer"] in ("chosen", "rejected") and claim["verdict"] in ("true", "false", "unknown")
        if not (has_place and is_told and is_text(claim["object"])):
            raise RecordError(
                f"claims[{number}] needs an answer (chosen or rejected), a start and an end (whole numbers), an object "
                "and a verdict (true, false or unknown)"
            )
    return claims


def _is_size(size: Any) -> bool:
    return isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side < 2**31 for side in size)
