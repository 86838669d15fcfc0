"""Means over seeds, and their intervals, against plain loops."""

import random

import numpy as np
import pytest

from mfpo.study.statistics import difference, estimate, ratio


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


def test_an_interval_of_a_share_ends_where_shares_do():
    seeds = scores("existence_accuracy", *([(right, 1)] * 20 + [(1, 1)] * 80 for right in (1, 0.5, 1)))
    assert estimate(seeds, "existence_accuracy").high == 100
    wrong = scores("existence_accuracy", *([(1 - right, 1) for right, _ in one["existence_accuracy"]] for one in seeds))
    assert estimate(wrong, "existence_accuracy").low == 0
    assert estimate([{"length": one["existence_accuracy"]} for one in seeds], "length").high > 1
    half = scores("existence_accuracy", *([(1, 1), (0, 1)] * 50 for _ in range(3)))
    assert difference(half, seeds, "existence_accuracy").low < -50


def test_figures_of_other_scenes_have_no_difference():
    a, b = scores("chair_s", [(1, 1)] * 3), scores("chair_s", [(1, 1)] * 2)
    for of in (difference, ratio):
        with pytest.raises(ValueError, match="of 3 and of 2 scenes"):
            of(a, b, "chair_s")


def slow_interval(seeds: list[list[tuple[float, float]]], resamples: int) -> tuple[float, float]:
    """Draw seeds and scenes, these for all seeds alike, one by one."""
    random.seed(0)
    means = []
    for _ in range(resamples):
        scenes = random.choices(range(len(seeds[0])), k=len(seeds[0]))
        values = []
        for counts in random.choices(seeds, k=len(seeds)):
            drawn = [counts[scene] for scene in scenes]
            values.append(100 * sum(part for part, _ in drawn) / sum(whole for _, whole in drawn))
        means.append(sum(values) / len(values))
    means.sort()
    return means[int(0.025 * resamples)], means[int(0.975 * resamples)]


def test_the_interval_is_that_of_seeds_and_scenes_drawn_one_by_one_where_seeds_agree():
    scenes = [(1, 1)] * 30 + [(0, 1)] * 70
    seeds = [scenes] * 4 + [[*scenes[1:], (1, 1)]]
    found = estimate(scores("chair_s", *seeds), "chair_s")
    low, high = slow_interval(seeds, 4_000)
    assert found.low == pytest.approx(low, abs=1.0)
    assert found.high == pytest.approx(high, abs=1.0)
    # The same scenes in all seeds are not more scenes.
    assert found.high - found.low == pytest.approx(2 * 1.96 * (30 * 70 / 100) ** 0.5, rel=0.15)


def test_the_interval_is_students_where_seeds_differ():
    random.seed(1)
    seeds = [[(int(random.random() < rate), 1) for _ in range(200)] for rate in (0.4, 0.5, 0.6)]
    found = estimate(scores("chair_s", *seeds), "chair_s")
    own = [100 * sum(part for part, _ in counts) / 200 for counts in seeds]
    half = 4.303 * np.std(own, ddof=1) / 3**0.5  # t of 2 degrees of freedom, from a table
    assert found.low == pytest.approx(np.mean(own) - half, rel=1e-3)
    assert found.high == pytest.approx(np.mean(own) + half, rel=1e-3)


def test_a_ratio_is_the_mean_over_seeds_of_ratios():
    a, b = scores("length", [(3, 1), (5, 1)], [(6, 1)]), scores("length", [(2, 1), (2, 1)], [(2, 1)])
    assert ratio(a, b, "length").mean == pytest.approx((4 / 2 + 6 / 2) / 2)


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
