"""Masks as COCO keeps them: run lengths, whose counts are a text so that they can be stored."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mfpo.records import RLE

Mask = NDArray[np.bool_]


def encode_mask(mask: Mask) -> RLE:
    """`mask`, (height, width), as a COCO run-length mask."""
    return as_rle(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))


def decode_mask(mask: RLE) -> Mask:
    """A COCO run-length mask as (height, width)."""
    return coco_mask.decode(mask).astype(bool)


def as_rle(encoded: dict[str, Any]) -> RLE:
    """What pycocotools returns, with `counts` as text."""
    return RLE(size=[int(side) for side in encoded["size"]], counts=encoded["counts"].decode("ascii"))
