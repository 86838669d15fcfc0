"""Means over seeds, and their intervals, against plain loops."""

import random

import numpy as np
import pytest

from mfpo.study.statistics import difference, estimate


def scores(figure: str, *seeds: list[tuple[float, float]]):
    return [{figure: np.array(counts, dtype=float)} for counts in seeds]


def test_a_figure_is_the_mean_over_seeds_of_parts_of_wholes():
    found = estimate(scores("chair_i", [(1, 4), (0, 1)], [(3, 4), (2, 2)]), "chair_i")
    values = [100 * 1 / 5, 100 * 5 / 6]
    assert found.mean == pytest.approx(sum(values) / 2)
    assert found.spread == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert found.seeds == 2


def test_a_mean_is_in_its_own_unit():
    found = estimate(scores("length", [(10, 1), (20, 1)]), "length")
    assert (found.mean, found.spread) == (15.0, None)


def slow_interval(seeds: list[list[tuple[float, float]]], resamples: int) -> tuple[float, float]:
    """Draw seeds, then scenes within each, one by one."""
    random.seed(0)
    means = []
    for _ in range(resamples):
        values = []
        for counts in random.choices(seeds, k=len(seeds)):
            drawn = random.choices(counts, k=len(counts))
            values.append(100 * sum(part for part, _ in drawn) / sum(whole for _, whole in drawn))
        means.append(sum(values) / len(values))
    means.sort()
    return means[int(0.025 * resamples)], means[int(0.975 * resamples)]


def test_the_interval_is_that_of_seeds_and_scenes_drawn_one_by_one():
    random.seed(1)
    seeds = [[(int(random.random() < rate), 1) for _ in range(200)] for rate in (0.1, 0.2, 0.4)]
    found = estimate(scores("chair_s", *seeds), "chair_s")
    low, high = slow_interval(seeds, 4_000)
    assert found.low == pytest.approx(low, abs=1.5)
    assert found.high == pytest.approx(high, abs=1.5)
    assert found.high - found.low > 10, "seeds differ far more than scenes of one seed do"


def test_a_difference_is_taken_on_the_same_scenes():
    random.seed(2)
    hard = [int(random.random() < 0.5) for _ in range(300)]
    a = scores("chair_s", [(one, 1) for one in hard])
    b = scores("chair_s", [(int(one and number % 10 > 0), 1) for number, one in enumerate(hard)])
    found = difference(a, b, "chair_s")
    fewer = sum(one for number, one in enumerate(hard) if number % 10 == 0)
    assert found.mean == pytest.approx(100 * fewer / 300)
    # Unpaired, the interval would be that of two shares of about a half: 16 points wide.
    assert found.high - found.low < 6
    assert found.low > 0


def test_nothing_of_nothing_is_0():
    assert estimate(scores("chair_i", [(0, 0), (0, 0)]), "chair_i").mean == 0.0
