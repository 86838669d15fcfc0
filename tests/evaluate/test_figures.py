"""Intervals and differences against resampling unit by unit, and figures worked by hand."""

import numpy as np
import pytest

from mfpo.errors import MfpoError
from mfpo.evaluate.figures import Figure, Tally, figure_of, mean, paired_differences


def random_units(seed, count=80):
    draw = np.random.default_rng(seed)
    wholes = draw.integers(0, 6, count)
    return {f"q{number}": (int(draw.integers(0, whole + 1)), int(whole)) for number, whole in enumerate(wholes)}


def slow_resamples(units, seed, resamples=2_000):
    """Draw units one by one: the sums of their counts, (resamples, counts)."""
    draw = np.random.default_rng(seed)
    rows = np.array(list(units), dtype=float)
    return np.array([rows[draw.integers(0, len(rows), len(rows))].sum(0) for _ in range(resamples)])


def test_the_interval_is_that_of_units_drawn_one_by_one():
    units = random_units(1)
    figure = figure_of(Tally(units))
    sums = slow_resamples(units.values(), seed=2)
    low, high = np.quantile(100 * sums[:, 0] / sums[:, 1], [0.025, 0.975])
    assert figure.value == pytest.approx(100 * sum(a for a, _ in units.values()) / sum(b for _, b in units.values()))
    # Two bootstraps of 2,000 resamples agree to a tenth of the interval.
    assert figure.low == pytest.approx(low, abs=0.1 * (high - low))
    assert figure.high == pytest.approx(high, abs=0.1 * (high - low))
    assert figure.low < figure.value < figure.high


def test_the_interval_of_a_share_is_near_the_binomial_one():
    figure = figure_of(Tally({str(number): (number < 300, 1) for number in range(1_000)}))
    half = 100 * 1.96 * (0.3 * 0.7 / 1_000) ** 0.5
    assert (figure.low, figure.high) == pytest.approx((30 - half, 30 + half), abs=0.3)
    assert (figure.value, figure.n) == (30, 1_000)


def test_a_mean_of_scores():
    figure = figure_of(Tally({"a": (2, 1), "b": (2, 1), "c": (2, 1)}, mean))
    assert figure == Figure(2.0, 2.0, 2.0, 3)
    assert Figure(2.0449, 1.96, 2.1, 3).rounded(1) == Figure(2.0, 2.0, 2.1, 3)


def test_a_share_of_nothing_is_0():
    assert figure_of(Tally({"a": (0, 0)})) == Figure(0.0, 0.0, 0.0, 1)


def test_no_unit():
    with pytest.raises(MfpoError, match="nothing to score"):
        figure_of(Tally({}))


def test_a_paired_difference_is_that_of_units_drawn_one_by_one():
    a, b = random_units(3), random_units(4)
    found = paired_differences({"x": Tally(a)}, {"x": Tally(b)})["x"]
    sums = slow_resamples([(*a[name], *b[name]) for name in a], seed=5)
    slow = 100 * (sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3])
    low, high = np.quantile(slow, [0.025, 0.975])
    assert found.difference == pytest.approx(found.a - found.b)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert found.p == pytest.approx(2 * min((slow <= 0).mean(), (slow >= 0).mean()), abs=0.05)
    assert found.n == 80


def test_pairing_finds_what_two_intervals_hide():
    # B is right wherever A is, and on 10 of 400 questions more: the intervals overlap widely, the difference is sure.
    a = Tally({str(number): (number < 200, 1) for number in range(400)})
    b = Tally({str(number): (number < 210, 1) for number in range(400)})
    assert figure_of(a).high > figure_of(b).low
    found = paired_differences({"x": b}, {"x": a})["x"]
    assert found.difference == pytest.approx(2.5)
    assert found.low > 0
    assert found.p < 0.01


def test_equal_answers_differ_by_nothing():
    units = random_units(6)
    found = paired_differences({"x": Tally(units)}, {"x": Tally(dict(units))})["x"]
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_the_order_of_the_units_does_not_matter():
    a, b = random_units(7), random_units(8)
    backwards = Tally(dict(reversed(b.items())))
    assert paired_differences({"x": Tally(a)}, {"x": Tally(b)}) == paired_differences({"x": Tally(a)}, {"x": backwards})


def test_other_figures_and_other_units_are_named():
    tally = Tally({"q1": (1, 1), "q2": (1, 1)})
    with pytest.raises(MfpoError, match="only one of the two has f1"):
        paired_differences({"x": tally}, {"x": tally, "f1": tally})
    with pytest.raises(MfpoError, match=r"x: 2 ids are scored in only one of the two \(q2, q3\)"):
        paired_differences({"x": tally}, {"x": Tally({"q1": (1, 1), "q3": (0, 1)})})
