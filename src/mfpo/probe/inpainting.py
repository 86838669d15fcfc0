"""What hides an object whose mask is exact: its region filled from around it, by the heat equation."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import laplacian
from scipy.sparse.linalg import splu

from mfpo.build.noise import Pixels, dilate
from mfpo.masks import Mask

# What stands where nothing is left to fill from: the middle of 0 to 255, as of noise without an image.
_GREY = 128

# Pixels by which a region grows before it is filled: the outline of an object is half its colour.
_OUTLINE = 1


def hide(pixels: Pixels, mask: Mask) -> Pixels:
    """`pixels` with `mask` and its outline inpainted, so that nothing of what it covers is seen."""
    return inpaint(pixels, dilate(mask, _OUTLINE))


def inpaint(pixels: Pixels, mask: Mask) -> Pixels:
    """`pixels`, (height, width, 3), with what the heat equation comes to inside `mask`, (height, width).

    Each pixel there is the mean of its neighbours, four or, at the image's border, fewer; the pixels outside stay as
    they are. Where the mask covers everything, all is grey.
    """
    if mask.all():
        return np.full_like(pixels, _GREY)
    if not mask.any():
        return pixels.copy()
    index = np.arange(mask.size).reshape(mask.shape)
    ends = [(index[:, :-1], index[:, 1:]), (index[:-1], index[1:])]
    starts, stops = (np.concatenate([pair[end].ravel() for pair in ends]) for end in (0, 1))
    grid = coo_array((np.ones(len(starts)), (starts, stops)), shape=(mask.size, mask.size))
    inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask)
    rows = laplacian(grid + grid.T).tocsr()[inside].tocsc()
    colours = pixels.reshape(-1, 3).copy()
    flow = -rows[:, outside] @ colours[outside].astype(np.float64)
    colours[inside] = np.rint(splu(rows[:, inside]).solve(flow)).clip(0, 255)
    return colours.reshape(pixels.shape)
