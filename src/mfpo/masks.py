"""Masks as COCO keeps them: run lengths, whose counts are a text so that they can be stored."""

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Mask = NDArray[np.bool_]


class RLE(TypedDict):
    """A COCO run-length mask, as `pycocotools.mask.decode` reads it; `size` is (height, width)."""

    size: list[int]
    counts: str


def encode_mask(mask: Mask) -> RLE:
    """`mask`, (height, width), as a COCO run-length mask."""
    return as_rle(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))


def decode_mask(mask: RLE) -> Mask:
    """A COCO run-length mask as (height, width)."""
    return coco_mask.decode(mask).astype(bool)


def as_rle(encoded: dict[str, Any]) -> RLE:
    """What pycocotools returns, with `counts` as text."""
    return RLE(size=[int(side) for side in encoded["size"]], counts=encoded["counts"].decode("ascii"))


def is_whole(mask: RLE) -> bool:
    """Whether the run lengths cover the mask's size exactly; of others pycocotools reads and writes beyond its memory.

    >>> [is_whole(RLE(size=[4, 4], counts=counts)) for counts in ("01", "`0", "o")]
    [False, True, False]
    """
    runs = _run_lengths(mask["counts"])
    return runs is not None and bool((runs >= 0).all()) and int(runs.sum()) == mask["size"][0] * mask["size"][1]


def _run_lengths(counts: str) -> NDArray[np.int64] | None:
    """The run lengths in COCO's compressed form, None where it is broken.

    Each number has 5 bits a character, lowest first, 32 in all but its last one, and from the fourth number on it is
    the difference to the last number but one.
    """
    codes = np.frombuffer(counts.encode("utf-8", "replace"), dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or (codes < 0).any() or (codes > 63).any() or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if places.max() > 6:  # of more bits than a mask has pixels
        return None
    numbers = np.add.reduceat((codes & 31) << (5 * places), starts)
    numbers -= np.where(codes[ends] & 16, 1 << (5 * (ends - starts + 1)), 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers
