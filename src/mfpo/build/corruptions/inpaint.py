"""The regions filled from their surroundings: a plain stand-in for an editor that removes the objects."""

from typing import Annotated

import numpy as np

from mfpo.build.corruptions import corruption
from mfpo.build.noise import Pixels, share
from mfpo.build.settings import BuildSettings
from mfpo.errors import MfpoError
from mfpo.masks import Mask
from mfpo.settings import about


@corruption("inpaint", needs_regions=True)
def inpaint(
    pixels: Pixels,
    mask: Mask,
    rng: np.random.Generator,
    settings: BuildSettings,
    *,
    inpaint_radius: Annotated[
        float, about("radius in pixels of the surroundings that a pixel is filled from", above=0)
    ] = 3.0,
) -> tuple[Pixels, float]:
    """OpenCV's inpainting by fast marching (Telea 2004). Raises MfpoError without OpenCV."""
    try:
        import cv2
    except ImportError:
        raise MfpoError("corruption=inpaint needs OpenCV; run `pip install 'mfpo[inpaint]'`") from None
    filled = cv2.inpaint(pixels, mask.astype(np.uint8), inpaint_radius, cv2.INPAINT_TELEA)
    return filled.astype(np.uint8), share(mask)
