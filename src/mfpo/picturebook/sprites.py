"""An object as it is put into a scene: a drawing made small, with an outline and a mask."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from mfpo.picturebook.drawings import KINDS
from mfpo.picturebook.pen import RGB, Pen

_SUPERSAMPLE = 4


@lru_cache(maxsize=20_000)
def sprite(name: str, colour: str, side: int, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """An object's pixels (side, side, 3) uint8 and its mask (side, side) bool, with a thin dark outline."""
    pen = Pen(side * _SUPERSAMPLE, colour)
    KINDS[name].draw(pen)
    large = pen.image
    outline = large.getchannel("A").filter(ImageFilter.MaxFilter(2 * (_SUPERSAMPLE // 2) + 1))
    sticker = Image.new("RGBA", large.size, (*RGB["ink"], 0))
    sticker.putalpha(outline)
    sticker.alpha_composite(large)
    small = np.asarray(sticker.convert("RGBa").resize((side, side), Image.Resampling.BOX).convert("RGBA"))
    if mirrored:
        small = small[:, ::-1]
    return small[..., :3], small[..., 3] >= 128
