"""COCO annotation files: their images, and each image's annotations."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from mfpo.errors import MfpoError
from mfpo.files import read_json

T = TypeVar("T")
Kind = Literal["instances", "captions"]

_PARTS = {"instances": "images, categories and annotations", "captions": "images and annotations"}
# What an annotation of another kind of file has.
_OTHER_KINDS = {"caption": "captions", "segments_info": "panoptic segments", "bbox": "instances"}


@dataclass(frozen=True)
class CocoImage:
    """An image: its id as a text, its file's name, its (height, width), and each annotation with its text.

    The text is the name of a category, or a caption. Name and size are None where the file does not give them.
    """

    id: str
    name: str | None
    size: tuple[int, int] | None
    annotations: list[tuple[str, dict[str, Any]]]


def read_coco(path: Path, kind: Kind) -> list[CocoImage]:
    """The images of a COCO file (`.gz` too). Ids may be whole numbers or texts: 1 and "1" are one id.

    Raises MfpoError for a file of another form or kind, for an id that comes twice, and for annotations of an image or
    a category that the file does not list.
    """
    content = read_json(path)
    try:
        return _images(content, kind)
    except _Fault as fault:
        what, *where = fault.args
        raise MfpoError(
            f"{path}: is not a COCO {kind} file ({what}){''.join(where)}{_other_kind(content, kind)}; "
            f"give one with {_PARTS[kind]}"
        ) from None


class _Fault(Exception):
    """A fault in a file, and the part it is in."""


def _images(content: Any, kind: Kind) -> list[CocoImage]:
    images = {
        id: CocoImage(id, (_text(entry, "file_name", where) or "").replace("\\", "/") or None, _size(entry), [])
        for id, (where, entry) in _by_id(content, "images").items()
    }
    categories = _by_id(content, "categories") if kind == "instances" else {}
    if [(entry.get("name"), "keypoints" in entry) for _, entry in categories.values()] == [("person", True)]:
        raise _Fault("it holds only the keypoints of people, which COCO annotates separately")
    annotations = _entries(content, "annotations")
    if kind == "instances":
        names = {id: _needed(_text(entry, "name", where), "name", where) for id, (where, entry) in categories.items()}
        texts = [names[id] for id in _references(annotations, "category_id", names)]
    else:
        texts = [_needed(_text(entry, "caption", where), "caption", where) for where, entry in annotations]
    for id, text, (_, entry) in zip(_references(annotations, "image_id", images), texts, annotations, strict=True):
        images[id].annotations.append((text, entry))
    return list(images.values())


def _entries(content: Any, part: str) -> list[tuple[str, dict[str, Any]]]:
    """The entries of a part of the file, each with the words that say where it is."""
    if isinstance(content, dict) and part not in content:
        raise _Fault(f"{part} is missing")
    entries = content[part] if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _Fault("its parts are not lists of objects")
    return [(f" in {part}[{number}]", entry) for number, entry in enumerate(entries)]


def _by_id(content: Any, part: str) -> dict[str, tuple[str, dict[str, Any]]]:
    entries: dict[str, tuple[str, dict[str, Any]]] = {}
    for where, entry in _entries(content, part):
        id = _id(entry, "id", where)
        if id in entries:
            raise _Fault(f"two of its {part} have the id {id[:40]}", where)
        entries[id] = where, entry
    return entries


def _references(annotations: Iterable[tuple[str, dict[str, Any]]], key: str, known: Container[str]) -> list[str]:
    """The image or category that each annotation refers to."""
    ids = [_id(entry, key, where) for where, entry in annotations]
    unknown = [id for id in ids if id not in known]
    if unknown:
        raise _Fault(
            f"it has annotations of {unknown[0][:40]}, but no entry with this id",
            f", {key} of {len(unknown)} of {len(ids)} annotations",
        )
    return ids


def _id(entry: dict[str, Any], key: str, where: str) -> str:
    value = _needed(entry.get(key), key, where)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).isprintable() or value == "":
        raise _Fault(f"{key} is {repr(value)[:40]}, but must be a whole number or a string", where)
    return str(value)


def _text(entry: dict[str, Any], key: str, where: str) -> str | None:
    value = entry.get(key)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise _Fault(f"{key} is {repr(value)[:40]}, but must be a string", where)
    return value


def _needed(value: T | None, key: str, where: str) -> T:
    if value is None:
        raise _Fault(f"{key} is missing", where)
    return value


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    size = image.get("height"), image.get("width")
    sides = [int(side) for side in size if isinstance(side, int | float) and 0 < side < 2**16 and side == side // 1]
    return (sides[0], sides[1]) if len(sides) == 2 else None


def _other_kind(content: Any, kind: Kind) -> str:
    """What the file looks like instead."""
    if isinstance(content, list):
        return ", but a list of results" if content and isinstance(content[0], dict) else ""
    annotations = content.get("annotations") if isinstance(content, dict) else None
    first = annotations[0] if isinstance(annotations, list) and annotations else {}
    kinds = [name for key, name in _OTHER_KINDS.items() if isinstance(first, dict) and key in first and name != kind]
    return f", but a file of {kinds[0]}" if kinds else ""
