"""Means over seeds with intervals over seeds and scenes, and differences of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mfpo.evaluate.figures import mean, share

Array = NDArray[np.float64]

# The counts of each scene or pair, (scenes, 2): a part and its whole, for each figure of one model and seed.
Scores = Mapping[str, Array]

# The figures whose part is in percent of the whole; of the others it is the mean.
PERCENT = frozenset(
    {"chair_s", "chair_i", "cover", "amber_chair", "amber_hal", "amber_cog", "mmhal_rate"}
    | {f"existence_{kind}" for kind in ("accuracy", "present", "random", "popular", "adversarial")}
)

# log p of (y_w, m), (y_l, m) and (y_w, m') of the scored pairs.
LOGPS = ("logp_chosen", "logp_rejected", "logp_rejected_image")

_RESAMPLES = 2_000


@dataclass(frozen=True)
class Estimate:
    """The mean over `seeds` of a figure or difference, the spread between them (standard deviation; None for a single
    seed), and the 95 % interval of the mean."""

    mean: float
    spread: float | None
    low: float
    high: float
    seeds: int


def estimate(scores: Sequence[Scores], figure: str) -> Estimate:
    """A figure of one model, whose `scores` are given seed by seed."""
    return _over_seeds([_resampled([one[figure]], figure)[0] for one in scores])


def ratio(a: Sequence[Scores], b: Sequence[Scores], figure: str) -> Estimate:
    """The figure of `a` divided by that of `b`, as `difference`."""
    drawn = (_resampled([one[figure], other[figure]], figure) for one, other in zip(a, b, strict=True))
    return _over_seeds([first / second for first, second in drawn])


def difference(a: Sequence[Scores], b: Sequence[Scores], figure: str) -> Estimate:
    """The figure of `a` minus that of `b`, seed by seed on the same scenes, so that these are drawn together."""
    drawn = (_resampled([one[figure], other[figure]], figure) for one, other in zip(a, b, strict=True))
    return _over_seeds([first - second for first, second in drawn])


def _resampled(counts: Sequence[Array], figure: str) -> list[Array]:
    """For each of several models the figure (1 + resamples,): of all scenes, then of scenes drawn with replacement."""
    scenes = len(counts[0])
    draws = np.random.default_rng(0).multinomial(scenes, np.full(scenes, 1 / scenes), size=_RESAMPLES)
    weights = np.vstack([np.ones(scenes), draws])
    return [(share if figure in PERCENT else mean)(weights @ one) for one in counts]


def _over_seeds(values: Sequence[Array]) -> Estimate:
    """From the value and the resamples of each seed: seeds are drawn with replacement, then scenes within them."""
    stacked = np.stack(values)
    seeds, random = len(stacked), np.random.default_rng(1)
    drawn = stacked[
        random.integers(seeds, size=(_RESAMPLES, seeds)), random.integers(1, _RESAMPLES + 1, size=(_RESAMPLES, seeds))
    ].mean(axis=1)
    own = stacked[:, 0]
    low, high = np.quantile(drawn, (0.025, 0.975))
    spread = float(own.std(ddof=1)) if seeds > 1 else None
    return Estimate(float(own.mean()), spread, float(low), float(high), seeds)
