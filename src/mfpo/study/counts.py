"""The counts that a model's figures are made of, for both scales."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from mfpo.dataset import read_dataset
from mfpo.evaluate.figures import Tally
from mfpo.models import load_model
from mfpo.probe.dependence import inpainted_logps, pair_logps
from mfpo.processors import load_processor
from mfpo.study.statistics import LOGPS, Array


def counts_of(tallies: Mapping[str, Tally], units: Iterable[str] | None = None) -> dict[str, Array]:
    """The counts of each figure, unit by unit, (units, 2).

    `units` are the ids of all units, in order, where a tally may lack some: those count nothing, so that two models'
    counts still stand side by side.
    """
    order = None if units is None else list(units)
    return {
        name: np.array([tally.units.get(id, (0, 0)) for id in order or tally.units], dtype=np.float64)
        for name, tally in tallies.items()
    }


def pair_figures(model: Path, pairs: Path) -> dict[str, Array]:
    """The log-probabilities of the pairs' sequences, and both image dependences, which are differences of two."""
    inputs = load_model(model), load_processor(model), read_dataset(pairs)
    logps = pair_logps(*inputs).double().numpy().T
    values = dict(zip(LOGPS, logps, strict=True)) | {
        "image_dependence": logps[0] - logps[2],
        "image_dependence_inpainted": logps[0] - inpainted_logps(*inputs).double().numpy(),
    }
    return {name: np.stack([value, np.ones_like(value)], axis=1) for name, value in values.items()}
