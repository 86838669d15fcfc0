"""The models' figures side by side: the table, what is best, what is worse than base, and the headline."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A figure of results.json, its unit, and which way it should go."""

    key: str
    name: str
    unit: str
    better: Literal["lower", "higher"] | None
    meaning: str


METRICS = (
    Metric("chair_s", "CHAIR_s", "%", "lower", "captions that name an absent object"),
    Metric("chair_i", "CHAIR_i", "%", "lower", "named objects that are absent"),
    Metric("cover", "Cover", "%", "higher", "objects in the image that the caption names"),
    Metric("length", "Length", "words", None, "words in a caption"),
    Metric("existence_accuracy", "Existence", "%", "higher", "right answers to “Is there a … in the image?”"),
    Metric("image_dependence", "Image dependence", "nats", "higher", "drop of log p(y_w) when key regions are noise"),
)


@dataclass(frozen=True)
class Cell:
    """A value as printed; `is_best` in its column, `is_worse` than the base model."""

    text: str
    is_best: bool
    is_worse: bool


@dataclass(frozen=True)
class Row:
    model: str
    cells: list[Cell]


Models = Mapping[str, Mapping[str, float]]


def measured(models: Models) -> list[Metric]:
    """The metrics that at least one model has."""
    return [metric for metric in METRICS if any(metric.key in figures for figures in models.values())]


def table(models: Models) -> list[Row]:
    """One row a model, in the order of results.json; a figure that a model lacks is a dash."""
    return [
        Row(name, [_cell(models, figures, metric) for metric in measured(models)]) for name, figures in models.items()
    ]


def headline(models: Models, name: str) -> str:
    """What happened to the CHAIR figures of a model, in one line.

    >>> headline({"base": {"chair_s": 40.0}, "mfpo": {"chair_s": 10.0}}, "mfpo")
    'mfpo: CHAIR_s fell by 75 %'
    """
    parts = []
    for metric in (metric for metric in METRICS if metric.key in ("chair_s", "chair_i")):
        pair = _pair(models, name, metric)
        if pair and pair[0] > 0:
            before, after = pair
            change = f" by {abs(after - before) / before:.0%}".replace("%", " %") if before != after else ""
            parts.append(f"{metric.name} {_verb(before, after)}{change}")
    return f"{name}: " + ", ".join(parts) if parts else name


def changes(models: Models, name: str) -> list[str]:
    """Each figure of a model that should go one way: from what to what, whichever way it went.

    >>> changes({"base": {"cover": 92.9}, "dpo": {"cover": 80.8}}, "dpo")
    ['Cover fell from 92.9 to 80.8 %']
    """
    said = []
    for metric in METRICS:
        pair = _pair(models, name, metric) if metric.better else None
        if pair and pair[0] == pair[1]:
            said.append(f"{metric.name} stayed at {_print(metric, pair[0])} {metric.unit}")
        elif pair:
            before, after = (_print(metric, value) for value in pair)
            said.append(f"{metric.name} {_verb(*pair)} from {before} to {after} {metric.unit}")
    return said


def _verb(before: float, after: float) -> str:
    return "stayed" if before == after else "fell" if after < before else "rose"


def _pair(models: Models, name: str, metric: Metric) -> tuple[float, float] | None:
    """The base model's figure and the named model's, rounded as printed; None where either is missing."""
    base, figures = models.get("base", {}), models[name]
    if metric.key not in base or metric.key not in figures:
        return None
    return _rounded(metric, base[metric.key]), _rounded(metric, figures[metric.key])


def _cell(models: Models, figures: Mapping[str, float], metric: Metric) -> Cell:
    """What is printed alike is equal: neither better nor worse."""
    if metric.key not in figures:
        return Cell("–", is_best=False, is_worse=False)
    value = _rounded(metric, figures[metric.key])
    if metric.better is None:
        return Cell(_print(metric, value), is_best=False, is_worse=False)
    sign = 1 if metric.better == "higher" else -1
    column = [_rounded(metric, others[metric.key]) for others in models.values() if metric.key in others]
    base = models.get("base", {}).get(metric.key)
    return Cell(
        _print(metric, value),
        is_best=sign * value == max(sign * other for other in column) and min(column) < max(column),
        is_worse=base is not None and sign * value < sign * _rounded(metric, base),
    )


def _digits(metric: Metric) -> int:
    return 2 if metric.unit == "nats" else 1


def _rounded(metric: Metric, value: float) -> float:
    return round(value, _digits(metric))


def _print(metric: Metric, value: float) -> str:
    return f"{value:.{_digits(metric)}f}"
