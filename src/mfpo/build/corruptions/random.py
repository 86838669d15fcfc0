"""Diffusion noise in a random rectangle of 20 % of the image (paper, Table 8)."""

import numpy as np

from mfpo.build.corruptions import corruption
from mfpo.build.noise import Pixels, add_noise, random_box, share
from mfpo.build.settings import BuildSettings
from mfpo.masks import Mask


@corruption("random")
def noise_somewhere(
    pixels: Pixels, mask: Mask, rng: np.random.Generator, settings: BuildSettings
) -> tuple[Pixels, float]:
    box = np.zeros_like(mask)
    box[random_box(*mask.shape, share=0.2, rng=rng)] = True
    return add_noise(pixels, box, step=settings.noise_step, schedule=settings.schedule, rng=rng), share(box)
