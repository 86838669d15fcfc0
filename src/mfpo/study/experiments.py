"""The experiments of `mfpo reproduce`, and the trials that they share."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from mfpo.study.results import Result
from mfpo.study.study import Study
from mfpo.study.trials import Data, Trial, trained

Experiment = Callable[[Study], Result]

EXPERIMENTS: dict[str, Experiment] = {}


def experiment(name: str) -> Callable[[Experiment], Experiment]:
    """Register a function as `mfpo reproduce NAME`, where NAME stands in `mfpo.study.NAMES`."""

    def add(function: Experiment) -> Experiment:
        if name in EXPERIMENTS:
            raise ValueError(f"two experiments are named {name!r}")
        EXPERIMENTS[name] = function
        return function

    return add


def load_experiments() -> Mapping[str, Experiment]:
    """All experiments by name: the modules that hold them register them when they are imported."""
    for module in ("tables", "figures", "checks", "questions", "gradients", "rounds", "look"):
        import_module(f"mfpo.study.{module}")
    return EXPERIMENTS


BASE = Trial()


def mfpo(data: Data | None = None, *, stage: str | None = None, **settings: Any) -> Trial:
    """A trial of MFPO."""
    return trained("mfpo", data, stage=stage, **settings)


def terms(*names: str) -> dict[str, Any]:
    """The weights of the loss with the named terms alone."""
    return {f"{term}_weight": 0.0 for term in ("text", "image", "margin") if term not in names}


def term_trials(data: Data) -> dict[str, Trial]:
    """MFPO with each combination of its loss's terms that says something, by name."""
    combinations = (
        ("text",),
        ("image",),
        ("text", "image"),
        ("text", "margin"),
        ("image", "margin"),
        ("text", "image", "margin"),
    )
    return {" + ".join(names): mfpo(data, **terms(*names)) for names in combinations}


def corruption_trials(data: Data) -> dict[str, Trial]:
    """MFPO with each place of the noise, by name."""
    kinds = {"global": "global", "random 20 %": "random", "region": "region"}
    return {row: mfpo(replace(data, corruption=kind)) for row, kind in kinds.items()}
