"""Images on the page: thumbnails, regions, what was changed."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mfpo.images import changed_share
from mfpo.report import draw_regions
from mfpo.report.samples import evenly, picture, thumbnail

ORANGE, BLUE = (230, 159, 0), (0, 114, 178)


def region(keyword, rows, columns, size=(40, 60)):
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[rows, columns] = 1
    encoded = coco_mask.encode(mask)
    return {"keyword": keyword, "score": 1.0, "image": 0, "mask": encoded | {"counts": encoded["counts"].decode()}}


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def test_region_is_tinted_outlined_and_nothing_else_is_touched(image):
    before = np.asarray(image).copy()
    drawn = np.asarray(draw_regions(image, [region("dog", slice(10, 20), slice(15, 30))])).astype(float)
    mask, around = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    mask[10:20, 15:30] = True
    around[9:21, 14:31] = True
    tinted = 0.6 * before + 0.4 * np.array(BLUE)
    assert np.abs(drawn - tinted)[mask].max() <= 1.0  # 8-bit rounding
    np.testing.assert_array_equal(drawn[around & ~mask], np.broadcast_to(BLUE, (int((around & ~mask).sum()), 3)))
    np.testing.assert_array_equal(drawn[~around], before[~around])
    np.testing.assert_array_equal(np.asarray(image), before)


def test_each_keyword_has_its_colour(image):
    regions = [
        region("dog", slice(2, 8), slice(2, 8)),
        region("cat", slice(20, 26), slice(20, 26)),
        region("dog", slice(20, 26), slice(40, 46)),
    ]
    drawn = draw_regions(image, regions)
    assert [drawn.getpixel(place) for place in ((1, 4), (19, 22), (39, 22))] == [BLUE, ORANGE, BLUE]


def test_mask_is_scaled_to_a_thumbnail():
    drawn = draw_regions(Image.new("RGB", (60, 40)), [region("dog", slice(20, 40), slice(60, 90), size=(80, 120))])
    assert drawn.size == (60, 40)
    tinted = np.asarray(drawn).any(axis=-1)
    assert tinted[10:20, 30:45].all()
    assert not tinted[:9].any()
    assert not tinted[:, 46:].any()


def test_changed_share_counts_a_pixel_once():
    before = np.full((10, 20, 3), 7, dtype=np.uint8)
    after = before.copy()
    after[2, 3] = (7, 7, 8)
    after[4, 5] = (0, 0, 0)
    assert changed_share(Image.fromarray(before), Image.fromarray(after)) == 2 / 200
    assert changed_share(Image.fromarray(before), Image.fromarray(before)) == 0
    assert changed_share(Image.fromarray(before), Image.fromarray(before[:1, :1])) == 1


def test_small_drawing_keeps_every_pixel(image):
    shown = picture(thumbnail(image))
    assert shown.pixelated
    assert shown.uri.startswith("data:image/png;base64,")
    decoded = Image.open(io.BytesIO(base64.b64decode(shown.uri.partition(",")[2])))
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image))


def test_photo_becomes_a_narrow_jpeg():
    shown = picture(thumbnail(Image.new("RGB", (640, 480))))
    assert (shown.width, shown.height, shown.pixelated) == (320, 240, False)
    assert shown.uri.startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(("count", "limit"), [(0, 5), (3, 5), (5, 5), (600, 7), (1000, 500)])
def test_evenly_takes_different_indices_that_exist(count, limit):
    indices = evenly(count, limit)
    assert len(set(indices)) == len(indices) == min(count, limit)
    assert all(0 <= index < count for index in indices)
    gaps = np.diff(indices)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
