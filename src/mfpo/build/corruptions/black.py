"""The regions painted black, without noise."""

import numpy as np

from mfpo.build.corruptions import corruption
from mfpo.build.noise import Pixels, share
from mfpo.build.settings import BuildSettings
from mfpo.masks import Mask


@corruption("black", needs_regions=True)
def black(pixels: Pixels, mask: Mask, rng: np.random.Generator, settings: BuildSettings) -> tuple[Pixels, float]:
    return np.where(mask[..., None], np.uint8(0), pixels), share(mask)
