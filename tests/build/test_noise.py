"""Noise schedules against published values, the noise against its statistics."""

import itertools

import numpy as np
import pytest

from mfpo.build.corruptions import CORRUPTIONS
from mfpo.build.noise import add_noise, alpha_bar, random_box
from mfpo.build.settings import BuildSettings

GREY = np.full((200, 300, 3), 128, dtype=np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    inside = np.zeros((200, 300), dtype=bool)
    inside[50:150, 100:250] = True
    return inside


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("schedule", "step", "published"),
    [
        ("sigmoid", 500, 0.745),  # VCD's code, as read in baselines.md
        ("sigmoid", 700, 0.351),
        ("sigmoid", 900, 0.133),
        ("sigmoid", 999, 0.081),
        ("linear", 500, 0.078),  # DDPM
    ],
)
def test_published_alpha_bar(schedule: str, step: int, published: float) -> None:
    assert alpha_bar(step, schedule) == pytest.approx(published, abs=5e-4)


def test_cosine_follows_its_closed_form() -> None:
    def kept(t: float) -> float:
        return np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2

    assert alpha_bar(500, "cosine") == pytest.approx(kept(501) / kept(0), rel=1e-9)


@pytest.mark.parametrize("schedule", ["sigmoid", "linear", "cosine"])
def test_each_step_keeps_less(schedule: str) -> None:
    kept = [alpha_bar(step, schedule) for step in range(0, 1000, 37)]
    assert all(0 < later < earlier < 1 for earlier, later in itertools.pairwise(kept))


def test_noise_has_the_variance_that_the_schedule_says(mask: np.ndarray) -> None:
    # Grey 128 is 0.004 in [-1, 1], and at step 200 the noise (std 0.07) is far from being clipped.
    noised = add_noise(GREY, mask, step=200, schedule="sigmoid", rng=np.random.default_rng(0))
    values = noised[mask] / 127.5 - 1
    assert values.std() == pytest.approx(np.sqrt(1 - alpha_bar(200)), rel=0.02)
    assert values.mean() == pytest.approx(np.sqrt(alpha_bar(200)) * (128 / 127.5 - 1), abs=0.002)


def test_signal_is_scaled_by_the_root_of_alpha_bar(mask: np.ndarray) -> None:
    bright = np.full_like(GREY, 166)
    noised = add_noise(bright, mask, step=300, schedule="sigmoid", rng=np.random.default_rng(0))
    expected = np.sqrt(alpha_bar(300)) * (166 / 127.5 - 1)
    assert (noised[mask] / 127.5 - 1).mean() == pytest.approx(expected, abs=0.003)


def test_white_is_clipped_and_never_wraps_to_black(mask: np.ndarray) -> None:
    noised = add_noise(np.full_like(GREY, 255), mask, step=200, schedule="sigmoid", rng=np.random.default_rng(0))
    assert noised[mask].min() > 128


def test_outside_the_mask_nothing_changes(photo: np.ndarray, mask: np.ndarray) -> None:
    before = photo.copy()
    noised = add_noise(photo, mask, step=500, schedule="sigmoid", rng=np.random.default_rng(0))
    np.testing.assert_array_equal(noised[~mask], photo[~mask])
    assert (noised[mask] != photo[mask]).any(axis=1).mean() > 0.99
    np.testing.assert_array_equal(photo, before)


def test_region_and_global_and_random_destroy_what_they_say(photo: np.ndarray, mask: np.ndarray) -> None:
    shares = {"region": 0.25, "global": 1.0, "random": 0.2}
    for kind, expected in shares.items():
        rng = np.random.default_rng(0)
        noised, share = CORRUPTIONS[kind](photo, mask, rng, BuildSettings())
        changed = (noised != photo).any(axis=2).mean()
        assert share == pytest.approx(expected, abs=0.005)
        assert changed == pytest.approx(share, abs=0.005)


def test_crop_is_a_small_part_enlarged(mask: np.ndarray) -> None:
    # Each pixel holds its own place, so that the enlarged image tells where it was cut.
    rows, columns = np.mgrid[:200, :300]
    places = np.stack([rows, columns * 255 // 300, rows * 0], axis=2).astype(np.uint8)
    cropped, share = CORRUPTIONS["crop"](places, mask, np.random.default_rng(0), BuildSettings())
    assert cropped.shape == places.shape
    seen = np.ptp(cropped[..., 0].astype(int)) / 200 * np.ptp(cropped[..., 1].astype(int)) / 255
    assert 0.8 <= share <= 0.99
    assert seen == pytest.approx(1 - share, abs=0.02)


@pytest.mark.parametrize(("height", "width"), [(200, 300), (300, 200), (64, 64), (40, 1000)])
def test_random_boxes_have_their_share_and_shape(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows, columns = random_box(height, width, share=0.2, rng=rng)
        assert 0 <= rows.start < rows.stop <= height
        assert 0 <= columns.start < columns.stop <= width
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        assert tall * wide == pytest.approx(0.2 * height * width, rel=0.04)
        if height != 40:  # a box of that share fits such an image only flat
            assert 0.72 < wide / tall < 1.39


def test_a_box_in_a_tiny_image_is_not_empty() -> None:
    rows, columns = random_box(3, 3, share=0.01, rng=np.random.default_rng(0))
    assert (rows.stop - rows.start, columns.stop - columns.start) == (1, 1)
