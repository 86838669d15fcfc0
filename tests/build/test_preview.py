"""The preview shows just what build writes."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mfpo.build.preview import COLUMNS, GAP, LABEL_HEIGHT, LEVELS, preview
from mfpo.build.settings import BuildSettings
from mfpo.build.steps import build_record
from mfpo.errors import SettingError
from mfpo.images import decode_image, encode_image
from mfpo.records import new_record

HEIGHT, WIDTH = 90, 130  # wider than every label


def make_record(size=(HEIGHT, WIDTH), images=1):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(images)]
    return new_record(
        id="r0",
        images=[encode_image(picture) for picture in pictures],
        question="What is there?",
        chosen="A dog runs.",
        rejected="A cat runs.",
        source={"dataset": "test", "row": 0},
    )


def region():
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[20:60, 30:100] = 1
    rle = coco_mask.encode(mask)
    return {"keyword": "dog", "score": 1.0, "mask": rle | {"counts": rle["counts"].decode()}, "image": 0}


def tile(page, number):
    """Tile `number`, (90, 130, 3); 0 is the original, then the levels follow."""
    row, column = divmod(number, COLUMNS)
    width = (page.width - GAP) // COLUMNS
    top = GAP + row * (HEIGHT + LABEL_HEIGHT + GAP) + LABEL_HEIGHT
    left = GAP + column * width
    return np.asarray(page)[top : top + HEIGHT, left : left + WIDTH].astype(int)


@pytest.mark.parametrize(
    ("corruption", "regions", "images"),
    [("region", [region()], 1), ("region", [], 1), ("global", [], 2), ("random", [], 1)],
)
def test_each_tile_is_the_rejected_image_that_build_writes_at_its_step(corruption, regions, images):
    record = make_record(images=images)
    settings = BuildSettings(corruption=corruption, schedule="cosine", seed=3)
    page = preview(record, regions, settings)
    np.testing.assert_array_equal(tile(page, 0), np.asarray(decode_image(record["images"][0])))
    for number, step in enumerate(LEVELS, start=1):
        at_step = BuildSettings(corruption=corruption, schedule="cosine", seed=3, noise_step=step)
        built, _ = build_record(record, at_step, lambda searches: [regions for _ in searches])
        np.testing.assert_array_equal(tile(page, number), np.asarray(decode_image(built["rejected_images"][0])))


def test_levels_go_from_nearly_the_original_to_noise_inside_the_region_only():
    assert LEVELS == (0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)
    page = preview(make_record(), [region()], BuildSettings())
    changes = [np.abs(tile(page, number) - tile(page, 0)) for number in range(1, 12)]
    inside = [change[20:60, 30:100].mean() for change in changes]
    # abar_0 is 1 - 2.2e-5 with VCD's schedule: noise of 0.6 of 255 grey levels, rounded and half of it clipped at most.
    assert inside[0] < 1
    assert inside == sorted(inside)
    assert inside[-1] > 40
    assert all(change.sum() == change[20:60, 30:100].sum() for change in changes)


@pytest.mark.parametrize("size", [(1, 1), (10, 3000)])
def test_tiny_and_wide_images_have_a_preview(size):
    page = preview(make_record(size), [], BuildSettings())
    assert COLUMNS * 100 < page.width < COLUMNS * 1050


@pytest.mark.parametrize("corruption", ["crop", "blur", "black"])
def test_corruption_without_noise_has_no_levels(corruption):
    with pytest.raises(SettingError, match=f"corruption {corruption} has no noise levels"):
        preview(make_record(), [region()], BuildSettings(corruption=corruption))
