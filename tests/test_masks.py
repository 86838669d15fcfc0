"""Run-length masks against pycocotools, which does not check them."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mfpo.masks import decode_mask, encode_mask, is_whole


def test_what_pycocotools_writes_is_whole_and_comes_back():
    random = np.random.default_rng(0)
    for _ in range(500):
        mask = random.random(random.integers(1, 60, 2)) < random.choice([0.01, 0.5, 0.99])
        encoded = encode_mask(mask)
        assert is_whole(encoded)
        np.testing.assert_array_equal(decode_mask(encoded), mask)


def test_only_masks_that_decode_and_encode_to_themselves_are_whole():
    random = np.random.default_rng(0)
    whole = 0
    for _ in range(3000):
        height, width = (int(side) for side in random.integers(1, 12, 2))
        counts = list(encode_mask(random.random((height, width)) < 0.5)["counts"])
        counts[random.integers(len(counts))] = chr(random.integers(40, 120))
        mask = {"size": [height, width], "counts": "".join(counts)}
        if is_whole(mask):
            whole += 1
            # pycocotools must find the very same mask in it, though other run lengths may say so.
            again = coco_mask.decode(encode_mask(decode_mask(mask)))
            np.testing.assert_array_equal(again, decode_mask(mask))
    assert 10 < whole < 2000


@pytest.mark.parametrize("counts", ["", "o", "é", "_hR43^", "01", "0`01", "~~~~", "ooooooooo0"])
def test_broken_counts_are_not_whole(counts):
    assert not is_whole({"size": [4, 4], "counts": counts})
