"""mDPO's: 1 to 20 % of the image, cut out and enlarged, without noise."""

import numpy as np
from PIL import Image

from mfpo.build.corruptions import corruption
from mfpo.build.noise import Pixels, random_box
from mfpo.build.settings import BuildSettings
from mfpo.masks import Mask


@corruption("crop")
def crop(pixels: Pixels, mask: Mask, rng: np.random.Generator, settings: BuildSettings) -> tuple[Pixels, float]:
    box = random_box(*mask.shape, share=rng.uniform(0.01, 0.2), rng=rng)
    cut = Image.fromarray(pixels[box])
    enlarged = cut.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(enlarged), 1 - cut.width * cut.height / mask.size
