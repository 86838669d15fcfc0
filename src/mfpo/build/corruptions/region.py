"""The paper's: diffusion noise in the regions."""

import numpy as np

from mfpo.build.corruptions import corruption
from mfpo.build.noise import Pixels, add_noise, share
from mfpo.build.settings import BuildSettings
from mfpo.masks import Mask


@corruption("region", needs_regions=True)
def region(pixels: Pixels, mask: Mask, rng: np.random.Generator, settings: BuildSettings) -> tuple[Pixels, float]:
    noised = add_noise(pixels, mask, step=settings.noise_step, schedule=settings.schedule, rng=rng)
    return noised, share(mask)
