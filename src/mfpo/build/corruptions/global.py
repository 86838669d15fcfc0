"""Diffusion noise on the whole image; also the paper's fallback where no region is found."""

import numpy as np

from mfpo.build.corruptions import corruption
from mfpo.build.noise import Pixels, add_noise
from mfpo.build.settings import BuildSettings
from mfpo.masks import Mask


@corruption("global")
def noise_everywhere(
    pixels: Pixels, mask: Mask, rng: np.random.Generator, settings: BuildSettings
) -> tuple[Pixels, float]:
    everywhere = np.ones_like(mask)
    return add_noise(pixels, everywhere, step=settings.noise_step, schedule=settings.schedule, rng=rng), 1.0
