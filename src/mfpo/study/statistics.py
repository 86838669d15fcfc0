"""Means over seeds with intervals over seeds and scenes, and differences of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from mfpo.evaluate.figures import mean, share

Array = NDArray[np.float64]

# The counts of each scene or pair, (scenes, 2): a part and its whole, for each figure of one model and seed.
Scores = Mapping[str, Array]

# The figures that are at most the whole.
_SHARES = frozenset(
    {"chair_s", "chair_i", "cover", "amber_chair", "amber_hal", "amber_cog", "mmhal_rate", "right", "mapped"}
    | {"unusual_colours", "counts", "same_without_regions"}
    | {f"existence_{kind}" for kind in ("accuracy", "present", "random", "popular", "adversarial")}
)

# The figures whose part is in percent of the whole; of the others it is the mean. The paper has a fraction of one.
PERCENT = _SHARES - {"mmhal_rate"} | {f"llava_bench_{kind}" for kind in ("conversation", "captioning", "reasoning")}

# log p of (y_w, m), (y_l, m) and (y_w, m') of the scored pairs.
LOGPS = ("logp_chosen", "logp_rejected", "logp_rejected_image")

_RESAMPLES = 2_000


@dataclass(frozen=True)
class Estimate:
    """The mean over `seeds` of a figure or difference, the spread between them (standard deviation; None for a single
    seed), and the 95 % interval of the mean; that of a single seed is over its scenes alone."""

    mean: float
    spread: float | None
    low: float
    high: float
    seeds: int


def told(estimate: Estimate, form: str = ".1f") -> str:
    """A mean with its interval, in words."""
    return f"{estimate.mean:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def estimate(scores: Sequence[Scores], figure: str) -> Estimate:
    """A figure of one model, whose `scores` are given seed by seed."""
    over_seeds = _over_seeds([_resampled([counts[figure]], figure)[0] for counts in scores])
    # Student's interval does not know where shares end.
    if figure not in _SHARES:
        return over_seeds
    whole = 100.0 if figure in PERCENT else 1.0
    return replace(over_seeds, low=max(over_seeds.low, 0.0), high=min(over_seeds.high, whole))


def ratio(a: Sequence[Scores], b: Sequence[Scores], figure: str) -> Estimate:
    """The figure of `a` divided by that of `b`, as `difference`."""
    return _over_seeds([first / second for first, second in _drawn_together(a, b, figure)])


def difference(a: Sequence[Scores], b: Sequence[Scores], figure: str) -> Estimate:
    """The figure of `a` minus that of `b`, seed by seed on the same scenes, so that these are drawn together.

    Raises ValueError when one has more scenes than the other.
    """
    return _over_seeds([first - second for first, second in _drawn_together(a, b, figure)])


def _drawn_together(a: Sequence[Scores], b: Sequence[Scores], figure: str) -> Iterator[list[Array]]:
    for ours, theirs in zip(a, b, strict=True):
        if len(ours[figure]) != len(theirs[figure]):
            raise ValueError(f"{figure} is of {len(ours[figure])} and of {len(theirs[figure])} scenes, not of the same")
        yield _resampled([ours[figure], theirs[figure]], figure)


def _resampled(counts: Sequence[Array], figure: str) -> list[Array]:
    """For each of several models the figure (1 + resamples,): of all scenes, then of scenes drawn with replacement."""
    return [(share if figure in PERCENT else mean)(_weights(len(scenes)) @ scenes) for scenes in counts]


@cache
def _weights(scenes: int) -> Array:
    """How often each scene counts, (1 + resamples, scenes): once, then as it is drawn."""
    draws = np.random.default_rng(0).multinomial(scenes, np.full(scenes, 1 / scenes), size=_RESAMPLES)
    return np.vstack([np.ones(scenes), draws])


def _over_seeds(values: Sequence[Array]) -> Estimate:
    """From the value and the resamples of each seed; the interval is what two together span.

    One is drawn: seeds with replacement, and with them scenes, the same in all seeds, as at the large scale these are
    the same questions. The other is Student's, of the seeds' own values, as drawing from a few seeds is too sure.
    """
    stacked = np.stack(values)
    seeds, random, size = len(stacked), np.random.default_rng(1), (_RESAMPLES, len(stacked))
    drawn = stacked[random.integers(seeds, size=size), random.integers(1, _RESAMPLES + 1, size=(_RESAMPLES, 1))]
    undrawn = stacked[:, 0]
    low, high = np.quantile(drawn.mean(axis=1), (0.025, 0.975))
    middle = float(undrawn.mean())
    if seeds == 1:
        return Estimate(middle, None, float(low), float(high), seeds)
    spread = float(undrawn.std(ddof=1))
    half = float(t.ppf(0.975, seeds - 1)) * spread / seeds**0.5
    return Estimate(middle, spread, min(float(low), middle - half), max(float(high), middle + half), seeds)
