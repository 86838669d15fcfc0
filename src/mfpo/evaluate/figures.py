"""Figures with the count behind them and a 95 % interval, and differences of figures: bootstrap (Efron 1979)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mfpo.errors import MfpoError
from mfpo.files import some

Array = NDArray[np.float64]

_RESAMPLES = 2_000
_QUANTILES = (0.025, 0.975)


def mean(sums: Array) -> Array:
    """The first sum by the second, (..., 2) -> (...); a mean of nothing is 0."""
    return quotient(sums[..., 0], sums[..., 1])


def share(sums: Array) -> Array:
    """The first sum in percent of the second, (..., 2) -> (...); a share of nothing is 0."""
    return quotient(100 * sums[..., 0], sums[..., 1])


@dataclass(frozen=True)
class Tally:
    """The counts behind a figure: those of each unit (a question or an image, by id), and the statistic of their sums.

    The bootstrap resamples units; every unit has as many counts as `statistic` takes, (..., counts) -> (...).

    >>> figure_of(Tally({"q1": (1, 2), "q2": (2, 2)}))
    Figure(value=75.0, low=50.0, high=100.0, n=2)
    """

    units: Mapping[str, tuple[float, ...]]
    statistic: Callable[[Array], Array] = share


@dataclass(frozen=True)
class Figure:
    """A figure of `n` questions or images, and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    n: int

    def rounded(self, digits: int) -> "Figure":
        """The figure and its interval to so many decimals."""
        return Figure(round(self.value, digits), round(self.low, digits), round(self.high, digits), self.n)


@dataclass(frozen=True)
class Difference:
    """Figure of A minus figure of B on the same `n` units, its 95 % interval, and the two-sided p of no difference."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    n: int


def figure_of(tally: Tally) -> Figure:
    """The figure, with the percentile interval of 2,000 resamples of its units. Raises MfpoError without a unit."""
    if not tally.units:
        raise MfpoError("there is nothing to score: the figure has no question")
    counts = np.array(list(tally.units.values()), dtype=np.float64)
    low, high = np.quantile(tally.statistic(_resampled(counts)), _QUANTILES)
    return Figure(float(tally.statistic(counts.sum(0))), float(low), float(high), len(counts))


def paired_differences(a: Mapping[str, Tally], b: Mapping[str, Tally]) -> dict[str, Difference]:
    """The paired differences of two results of one benchmark: a resample draws the same units from both.

    Raises MfpoError when the results have other figures or other units.
    """
    if a.keys() != b.keys():
        raise MfpoError(
            f"only one of the two has {some(sorted(a.keys() ^ b.keys()))}; compare answers to one benchmark"
        )
    return {name: _difference(name, a[name], b[name]) for name in a}


def _difference(name: str, a: Tally, b: Tally) -> Difference:
    alone = sorted(a.units.keys() ^ b.units.keys())
    if alone:
        raise MfpoError(
            f"{name}: {len(alone)} ids are scored in only one of the two ({some(alone)}); "
            "give answers to the same questions"
        )
    counts = np.array([(*a.units[unit], *b.units[unit]) for unit in a.units], dtype=np.float64)

    def figures(sums: Array) -> tuple[Array, Array]:
        half = sums.shape[-1] // 2
        return a.statistic(sums[..., :half]), b.statistic(sums[..., half:])

    figure_a, figure_b = figures(counts.sum(0))
    resampled_a, resampled_b = figures(_resampled(counts))
    differences = resampled_a - resampled_b
    low, high = np.quantile(differences, _QUANTILES)
    # Counting the observed sample too keeps p above 0 (Davison and Hinkley 1997, section 4.2).
    tail = min((differences <= 0).sum(), (differences >= 0).sum()) + 1
    p = min(1.0, 2 * float(tail) / (_RESAMPLES + 1))
    difference = float(figure_a - figure_b)
    return Difference(float(figure_a), float(figure_b), difference, float(low), float(high), p, len(counts))


def quotient(part: Array, whole: Array) -> Array:
    """One by the other, each of any shape; 0 where the other is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


def _resampled(counts: Array) -> Array:
    """The sums of as many units as there are, drawn with replacement: (units, counts) -> (resamples, counts)."""
    # Units with equal counts are drawn together, so that 14,000 yes/no questions cost no more than their four outcomes.
    rows, times = np.unique(counts, axis=0, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(counts), times / len(counts), size=_RESAMPLES)
    sums: Array = draws @ rows
    return sums
