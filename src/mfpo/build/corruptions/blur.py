"""The regions blurred, without noise."""

import numpy as np
from PIL import Image, ImageFilter

from mfpo.build.corruptions import corruption
from mfpo.build.noise import Pixels, share
from mfpo.build.settings import BuildSettings
from mfpo.masks import Mask

# Standard deviation as a share of the longer side: no object of COCO's small size survives it.
_SIGMA = 0.05


@corruption("blur", needs_regions=True)
def blur(pixels: Pixels, mask: Mask, rng: np.random.Generator, settings: BuildSettings) -> tuple[Pixels, float]:
    blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(_SIGMA * max(mask.shape)))
    return np.where(mask[..., None], np.asarray(blurred), pixels), share(mask)
