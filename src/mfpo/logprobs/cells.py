"""Cells: an answer of a record under one of its images, each a sequence whose log p a method may read.

All in one table, so that records, reference, methods and metrics call the same thing by the same name.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# The columns of images, in the order of a record's rows: m, m', and no image.
IMAGES = ("images", "rejected_images", None)


@dataclass(frozen=True)
class Cell:
    """The columns of a record that hold the answer and the images; without images the prompt stands alone."""

    answer: str
    images: str | None


# y_w, y_l and y', the right answer to m', each under m, under m' and without an image ("blind").
CELLS = {
    "chosen": Cell("chosen", "images"),
    "rejected": Cell("rejected", "images"),
    "rejected_image": Cell("chosen", "rejected_images"),
    "counter": Cell("counter", "images"),
    "counter_rejected_image": Cell("counter", "rejected_images"),
    "rejected_rejected_image": Cell("rejected", "rejected_images"),
    "chosen_blind": Cell("chosen", None),
    "counter_blind": Cell("counter", None),
    "rejected_blind": Cell("rejected", None),
}

# The cells of the text margin, and with those of the image margin.
TEXT = ("chosen", "rejected")
TEXT_AND_IMAGE = (*TEXT, "rejected_image")

# The value of a cell that a method does not name. No method reads it, so that types need not say None.
_ABSENT: Any = None


@dataclass(frozen=True)
class ByCell(Generic[T]):
    """A value for each cell that a method names, None for the others."""

    chosen: T
    rejected: T = _ABSENT
    rejected_image: T = _ABSENT
    counter: T = _ABSENT
    counter_rejected_image: T = _ABSENT
    rejected_rejected_image: T = _ABSENT
    chosen_blind: T = _ABSENT
    counter_blind: T = _ABSENT
    rejected_blind: T = _ABSENT

    def there(self) -> dict[str, T]:
        """The cells that are there."""
        return {name: value for name, value in vars(self).items() if value is not None}


def in_rows(cells: Iterable[str]) -> tuple[str, ...]:
    """The cells in the order of a record's sequences: image by image, as the answers to one image share a row.

    >>> in_rows(["chosen_blind", "rejected_image", "chosen", "counter", "rejected"])
    ('chosen', 'rejected', 'counter', 'rejected_image', 'chosen_blind')
    """
    names = set(cells)
    known = [name for name in CELLS if name in names]
    return tuple(sorted(known, key=lambda name: IMAGES.index(CELLS[name].images)))


def columns(cells: Iterable[str]) -> list[str]:
    """The columns of a record that the cells are made of, in their order.

    >>> columns(["chosen", "counter_rejected_image"])
    ['images', 'rejected_images', 'chosen', 'counter']
    """
    used = [CELLS[name] for name in cells]
    images = [column for column in IMAGES if column and any(cell.images == column for cell in used)]
    answers = ("chosen", "rejected", "counter")
    return images + [column for column in answers if any(cell.answer == column for cell in used)]
