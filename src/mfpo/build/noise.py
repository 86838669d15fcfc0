"""Paper 3.1: diffusion noise that corrupts pixels of the original m, and its shapes."""

import math

import numpy as np
from numpy.typing import NDArray

from mfpo.build.settings import STEPS, Schedule
from mfpo.masks import Mask

Pixels = NDArray[np.uint8]


def betas(schedule: Schedule) -> NDArray[np.float64]:
    """The variance that each of the 1000 diffusion steps adds, (1000,).

    `sigmoid` is VCD's schedule, which the hallucination literature copies; `linear` is DDPM's (Ho et al. 2020);
    `cosine` is Nichol and Dhariwal's (2021).
    """
    match schedule:
        case "sigmoid":
            return 1 / (1 + np.exp(-np.linspace(-6, 6, STEPS))) * (0.005 - 1e-5) + 1e-5
        case "linear":
            return np.linspace(1e-4, 0.02, STEPS)
        case "cosine":
            abars = np.cos((np.arange(STEPS + 1) / STEPS + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - abars[1:] / abars[:-1], 0.999)


def alpha_bar(step: int, schedule: Schedule = "sigmoid") -> float:
    """Share of the image's variance that is kept at `step`, counted from 0 to 999 (abar_t, section 3.1).

    >>> round(alpha_bar(500), 3), round(alpha_bar(500, "linear"), 3)
    (0.745, 0.078)
    """
    # The paper multiplies the betas, which vanishes at once; DDPM's product of (1 - beta) is meant.
    return float(np.prod(1 - betas(schedule)[: step + 1]))


def add_noise(pixels: Pixels, mask: Mask, *, step: int, schedule: Schedule, rng: np.random.Generator) -> Pixels:
    """m' = sqrt(abar) m + sqrt(1 - abar) eps inside the mask, eps ~ N(0, I); outside, the pixels stay as they are.

    pixels: (height, width, 3) of 0..255, computed in [-1, 1], clipped and rounded. mask: (height, width).
    """
    abar = alpha_bar(step, schedule)
    inside = np.flatnonzero(mask)
    rejected = pixels.reshape(-1, 3).copy()
    # In place and by index, which for a photo takes half the time of plain arithmetic on pixels[mask].
    noised = rejected.take(inside, axis=0).astype(np.float32)
    noised /= 127.5
    noised -= 1
    noised *= np.sqrt(abar, dtype=np.float32)
    noise = rng.standard_normal(noised.shape, dtype=np.float32)
    noise *= np.sqrt(1 - abar, dtype=np.float32)
    noised += noise
    np.clip(noised, -1, 1, out=noised)
    noised += 1
    noised *= 127.5
    rejected[inside] = np.rint(noised, out=noised)
    return rejected.reshape(pixels.shape)


def share(mask: Mask) -> float:
    """The share of the pixels that are inside the mask, from 0 to 1."""
    return np.count_nonzero(mask) / mask.size  # ten times as fast as mean()


def dilate(mask: Mask, pixels: int) -> Mask:
    """`mask`, (height, width), grown by `pixels` to each side, corners included."""
    for axis in (0, 1) if pixels else ():
        padding = [(0, 0), (0, 0)]
        padding[axis] = (pixels + 1, pixels)
        count = np.cumsum(np.pad(mask, padding), axis=axis, dtype=np.int32)
        size = mask.shape[axis]
        ends, starts = (np.take(count, range(first, first + size), axis=axis) for first in (2 * pixels + 1, 0))
        mask = ends > starts
    return mask


def random_box(height: int, width: int, *, share: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a random rectangle of `share` of the area; width / height is 3/4 to 4/3 if that fits."""
    area = share * height * width
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    tall = min(max(math.sqrt(area / aspect), 1), height)
    wide = min(max(area / tall, 1), width)
    # Where the width was cut, a flatter image than the aspect allows, the height makes up for it.
    rows, columns = min(max(round(area / wide), 1), height), round(wide)
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    return slice(top, top + rows), slice(left, left + columns)
