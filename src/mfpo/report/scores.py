"""The models' figures side by side: the table, what is best, what is worse than base, and the headline."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from mfpo.report.tables import Cell, typeset


@dataclass(frozen=True)
class Metric:
    """A figure of results.json, its unit, and which way it should go."""

    key: str
    name: str
    unit: str
    better: Literal["lower", "higher"] | None
    meaning: str


# Noise leaves much of a region to be seen; what is inpainted is gone.
_NOISE, _INPAINTED = "Image dependence (noise)", "Image dependence (inpainted)"

METRICS = (
    Metric("chair_s", "CHAIR_s", "%", "lower", "captions that name an absent object"),
    Metric("chair_i", "CHAIR_i", "%", "lower", "named objects that are absent"),
    Metric("cover", "Cover", "%", "higher", "objects in the image that the caption names"),
    Metric("length", "Length", "words", None, "words in a caption"),
    Metric("existence_accuracy", "Existence", "%", "higher", "right answers to “Is there a … in the image?”"),
    Metric("image_dependence", _NOISE, "nats", "higher", "drop of log p(y_w) under noise in the key regions"),
    Metric("image_dependence_inpainted", _INPAINTED, "nats", "higher", "drop of log p(y_w) without the key regions"),
)


Models = Mapping[str, Mapping[str, float]]


def measured(models: Models) -> list[Metric]:
    """The metrics that at least one model has."""
    return [metric for metric in METRICS if any(metric.key in figures for figures in models.values())]


def header(models: Models) -> list[str | Cell]:
    """The names of the columns, with arrows that say which way is better, and units."""
    arrows = {"lower": " ↓", "higher": " ↑", None: ""}
    return [
        "model",
        *(
            Cell(Markup("{}{}<small>{}</small>").format(typeset(m.name), arrows[m.better], m.unit), title=m.meaning)
            for m in measured(models)
        ),
    ]


def rows(models: Models) -> list[list[str | Cell]]:
    """One row a model, in the order of results.json; a figure that a model lacks is a dash."""
    return [
        [name, *(_cell(models, figures, metric) for metric in measured(models))] for name, figures in models.items()
    ]


def headline(models: Models, name: str) -> str:
    """What happened to the CHAIR figures of a model, in one line.

    >>> headline({"base": {"chair_s": 40.0}, "mfpo": {"chair_s": 10.0}}, "mfpo")
    'mfpo: CHAIR_s fell by 75 %'
    """
    parts = []
    for metric in (metric for metric in METRICS if metric.key in ("chair_s", "chair_i")):
        before, after = _as_printed(models, name, metric)
        if before and after is not None:
            percent = round(100 * abs(after - before) / before)
            change = f" by {percent or 'less than 1'} %" if before != after else ""
            parts.append(f"{metric.name} {_verb(before, after)}{change}")
    return f"{name}: " + ", ".join(parts) if parts else name


def changes(models: Models, name: str) -> list[str]:
    """Each figure of a model that should go one way: from what to what, whichever way it went.

    >>> changes({"base": {"cover": 92.9}, "dpo": {"cover": 80.8}}, "dpo")
    ['Cover fell from 92.9 to 80.8 %']
    """
    sentences = []
    for metric in (metric for metric in METRICS if metric.better):
        before, after = _as_printed(models, name, metric)
        if before is None or after is None:
            continue
        if before == after:
            sentences.append(f"{metric.name} stayed at {_print(metric, after)} {metric.unit}")
        else:
            change = f"from {_print(metric, before)} to {_print(metric, after)} {metric.unit}"
            sentences.append(f"{metric.name} {_verb(before, after)} {change}")
    return sentences


def _verb(before: float, after: float) -> str:
    return "stayed" if before == after else "fell" if after < before else "rose"


def _as_printed(models: Models, name: str, metric: Metric) -> tuple[float | None, float | None]:
    """The base model's figure and the named model's, rounded as printed; None where it is missing."""
    figures = (models.get("base", {}).get(metric.key), models[name].get(metric.key))
    before, after = (None if figure is None else _rounded(metric, figure) for figure in figures)
    return before, after


def _cell(models: Models, figures: Mapping[str, float], metric: Metric) -> Cell:
    """What is printed alike is equal: neither better nor worse."""
    if metric.key not in figures:
        return Cell("–")
    value = _rounded(metric, figures[metric.key])
    text = _print(metric, value)
    if metric.better is None:
        return Cell(text)
    sign = 1 if metric.better == "higher" else -1
    column = [_rounded(metric, others[metric.key]) for others in models.values() if metric.key in others]
    base = models.get("base", {}).get(metric.key)
    if sign * value == max(sign * other for other in column) and min(column) < max(column):
        return Cell(text, "best", "best of the column")
    if base is not None and sign * value < sign * _rounded(metric, base):
        return Cell(text, "worse", "worse than base")
    return Cell(text)


def _digits(metric: Metric) -> int:
    return 2 if metric.unit == "nats" else 1


def _rounded(metric: Metric, value: float) -> float:
    return round(value, _digits(metric))


def _print(metric: Metric, value: float) -> str:
    return f"{value:.{_digits(metric)}f}"
