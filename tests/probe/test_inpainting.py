"""Regions filled by the heat equation: against a plain slow solver, and where the answer is known."""

import numpy as np
import pytest

from mfpo.probe.inpainting import inpaint

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 9, 11


def masked(*boxes):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for box in boxes:
        mask[box] = True
    return mask


MASKS = {
    "inside": masked((slice(3, 6), slice(4, 8))),
    "two, one at the border": masked((slice(0, 3), slice(0, 2)), (slice(5, 9), slice(6, 8))),
    "all but a corner": ~masked((0, 0)),
    "a column": masked((slice(None), 5)),
}


@pytest.mark.parametrize("name", MASKS)
def test_each_pixel_becomes_the_mean_of_its_neighbours(name):
    pixels, mask = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8), MASKS[name]
    inside = [(int(row), int(column)) for row, column in np.argwhere(mask)]
    means, known = np.eye(len(inside)), np.zeros((len(inside), 3))
    for number, (row, column) in enumerate(inside):
        around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        around = [(y, x) for y, x in around if 0 <= y < HEIGHT and 0 <= x < WIDTH]
        for place in around:
            if mask[place]:
                means[number, inside.index(place)] -= 1 / len(around)
            else:
                known[number] += pixels[place] / len(around)
    filled = inpaint(pixels, mask)
    np.testing.assert_array_equal(filled[~mask], pixels[~mask])
    np.testing.assert_allclose(filled[mask], np.linalg.solve(means, known), atol=0.5 + 1e-6)  # rounded


def test_a_ramp_is_filled_with_the_ramp():
    """A linear function solves the heat equation."""
    ramp = np.repeat(np.add.outer(10 * np.arange(HEIGHT), 7 * np.arange(WIDTH))[..., None], 3, axis=-1).astype(np.uint8)
    mask = MASKS["inside"]
    np.testing.assert_array_equal(inpaint(np.where(mask[..., None], np.uint8(255), ramp), mask), ramp)


def test_nothing_is_left_where_the_mask_covers_everything():
    pixels = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    assert (inpaint(pixels, np.ones((HEIGHT, WIDTH), dtype=bool)) == 128).all()
    np.testing.assert_array_equal(inpaint(pixels, np.zeros((HEIGHT, WIDTH), dtype=bool)), pixels)
