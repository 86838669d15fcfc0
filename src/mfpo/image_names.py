"""Match image names between files: by file name, by id, or by COCO's number, which is both."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from mfpo.errors import MfpoError, RecordError

T = TypeVar("T")

# "COCO_val2014_000000310196.jpg", "val2017/000000310196.jpg" and 310196 are one image.
_COCO_IMAGE = re.compile(
    r"(?:(?:.*/)?COCO_[a-z]+\d{4}_|(?:.*/)?(?:train|val|test)\d{4}/)?0*(\d+)(?:\.(?:jpg|jpeg|png))?", re.IGNORECASE
)


def image_key(image: str) -> str:
    """The name under which images are compared: COCO's number without leading zeros, other names as they are.

    >>> image_key("COCO_val2014_000000310196.jpg"), image_key("val2017/000000310196.jpg"), image_key("310196")
    ('310196', '310196', '310196')
    >>> image_key("kitchen/1.jpg"), image_key("scene_007.png")
    ('kitchen/1.jpg', 'scene_007.png')
    """
    match = _COCO_IMAGE.fullmatch(image)
    return match.group(1) if match else image


class ByImage(dict[str, T]):
    """What is known of each image, by the key that `add` gives it, and found by what another file calls the image.

    A name counts before a number: "0001.jpg" is the image of that name, and the one of id 1 only if this one has no
    name or has its number in it. A bare number is an id. Errors name the `file` that all this is from.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._names: defaultdict[str, set[str]] = defaultdict(set)
        self._ids: defaultdict[str, set[str]] = defaultdict(set)
        self._numbers: defaultdict[str, set[str]] = defaultdict(set)
        self._spellings: dict[str, str] = {}

    def add(self, id: str, name: str | None) -> str:
        """The key of an image: its id, COCO's number in its file name, or the name where its number is not the id.

        Raises MfpoError when the names of two images differ only by the zeros before their number.
        """
        id_key = image_key(id)
        if name is None:
            self._ids[id_key].add(id_key)
            return id_key
        stem, _ = os.path.splitext(os.path.basename(name))
        digits = stem.rpartition("_")[2]
        number = image_key(os.path.basename(name))
        is_number = number.isdecimal()
        # 12 digits are COCO's, whatever ids a subset has.
        key = number if number == id_key or (is_number and len(digits) == 12) else name
        self._ids[id_key].add(key)
        if is_number:
            self._numbers[number].add(key)
        for way in {name, os.path.splitext(name)[0], stem}:
            self._names[way].add(key)
        if is_number and key == number and self._spellings.setdefault(key, digits) != digits:
            raise MfpoError(
                f"{self._file}: {self._spellings[key][:40]} and {digits[:40]} may be one image or two; "
                "write each image's number the same way throughout"
            )
        return key

    def find(self, called: str) -> str | None:
        """The key of the image that is `called` so, None if there is none. Raises RecordError for several."""
        number = image_key(called)
        if called.isdecimal():
            keys = self._ids.get(number, set())
            # A file of this number makes the id doubtful, but is not meant by a number that is no id.
            keys = keys and keys | self._numbers.get(number, set())
        else:
            ways = (called, os.path.splitext(called)[0])
            named = next((self._names[way] for way in ways if way in self._names), set())
            keys = named or {number} & self.keys() or self._ids.get(called, set())
        if len(keys) > 1:
            names = ", ".join(repr(name[:40]) for name in sorted(keys)[:3])
            raise RecordError(
                f"image {called[:40]!r} may be any of {len(keys)} images of {self._file} ({names}); give its file name"
            )
        return next(iter(keys), None)


def find_all(called: Iterable[str], known: Mapping[str, T]) -> dict[str, T]:
    """What is known of each of the images that are `called` so, without those that are not known.

    Raises RecordError as `ByImage.find`; in another mapping images are found by `image_key` alone.
    """
    find = known.find if isinstance(known, ByImage) else image_key
    keys = {name: find(name) for name in called}
    return {name: known[key] for name, key in keys.items() if key is not None and key in known}
