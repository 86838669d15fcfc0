"""The page's plots as inline SVG: the same bytes for the same numbers, readable on light and dark paper."""

import io
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mfpo.report.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY

# These become CSS colours in the SVG, so that the page's light or dark theme decides; blue is too dark for dark.
INK, LINE = "#010101", "#020202"
_THEME = {INK: "currentColor", LINE: "var(--line)", BLUE.lower(): "var(--blue)"}

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 8.5,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "mfpo",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
    "ytick.left": False,
}

# metrics.jsonl key -> name, colour, dashes: no line is told apart by its colour alone.
REWARDS = {
    "rewards/chosen": ("chosen", GREEN, "-"),
    "rewards/rejected": ("rejected", RED, "--"),
    "rewards/image_rejected": ("chosen, rejected image", BLUE, "-."),
}
LOSSES = {
    "loss/text": ("text", RED, "--"),
    "loss/image": ("image", BLUE, "-."),
    "loss/margin": ("margin", GREEN, "-"),
    "loss/lm": ("language model", PURPLE, ":"),
    "loss/kl": ("divergence", ORANGE, "--"),
    "loss/contrast": ("contrast", SKY, "-."),
}
LEVEL_COLOURS = (SKY, ORANGE, RED, GREEN, PURPLE, BLUE, GREY)
# The base model is what the others are measured against, so it is grey.
MODEL_COLOURS = (GREY, BLUE, GREEN, PURPLE, ORANGE, SKY)

Metrics = Sequence[Mapping[str, Any]]
Lines = Mapping[str, tuple[str, str, str]]


def curves(metrics: Metrics, lines: Lines, limits: tuple[float, float], label: str, *, wide: bool = False) -> Markup:
    """One line for each of `lines` over the training steps, with the stages' names and boundaries.

    `metrics` are the lines of metrics.jsonl. A key that no row has gets no line. `limits` are those of the y axis.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4 if wide else 5.4, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for key, (name, colour, dashes) in lines.items():
            points = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, linestyle=dashes, label=name)
        axes.set_ylim(limits)
        axes.margins(x=0.01)
        _draw_stages(axes, metrics)
        axes.set_xlabel("step")
        figure.legend(loc="outside upper left", ncols=len(lines))
        return svg(figure, label)


def shared_limits(runs: Sequence[Metrics], lines: Lines) -> tuple[float, float]:
    """y limits that hold every run's finite values and 0, so that panels side by side compare at a glance."""
    values = [row[key] for metrics in runs for row in metrics for key in lines if row.get(key) is not None]
    finite = [value for value in values if np.isfinite(value)] or [1.0]
    low, high = min(0.0, *finite), max(0.0, *finite)
    pad = 0.06 * ((high - low) or 1.0)
    return low - (pad if low < 0 else 0.0), high + pad


def bars(columns: Mapping[str, Mapping[str, float]], label: str) -> Markup:
    """Groups of bars, one group a metric: `columns` maps the metric's name to a value (percent) for each model."""
    models = list(dict.fromkeys(model for column in columns.values() for model in column))
    width = 0.8 / len(models)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for number, model in enumerate(models):
            groups = [group for group, column in enumerate(columns.values()) if model in column]
            values = [column[model] for column in columns.values() if model in column]
            places = np.array(groups) + (number - (len(models) - 1) / 2) * width
            colour = MODEL_COLOURS[number % len(MODEL_COLOURS)]
            drawn = axes.bar(places, values, width * 0.92, color=colour, label=model)
            axes.bar_label(drawn, fmt="%.1f", padding=1.5, fontsize=7.5)
        axes.set_xticks(range(len(columns)), list(columns))
        axes.tick_params(axis="x", length=0)
        axes.set_yticks([])
        axes.margins(x=0.02, y=0.12)
        figure.legend(loc="outside upper left", ncols=len(models), handlelength=0.9)
        return svg(figure, label)


def histogram(entropies: Sequence[float], levels: Sequence[str], label: str) -> Markup:
    """How many records have which entropy (nats), stacked by level, the easiest first."""
    by_level: dict[str, list[float]] = {}
    for entropy, level in sorted(zip(entropies, levels, strict=True)):
        by_level.setdefault(level, []).append(entropy)
    colours = [LEVEL_COLOURS[number % len(LEVEL_COLOURS)] for number in range(len(by_level))]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 2.3), layout="constrained")
        axes = figure.add_subplot()
        groups, names = list(by_level.values()), list(by_level)
        axes.hist(groups, bins=40, stacked=True, color=colours, label=names, rwidth=0.92)
        axes.set_xlabel("entropy of the chosen answer, nats")
        axes.set_ylabel("records")
        figure.legend(loc="outside upper left", ncols=len(names), handlelength=0.9)
        return svg(figure, label)


def _draw_stages(axes: Axes, metrics: Metrics) -> None:
    """Name each stage above the plot and draw a line where the next one begins."""
    start = metrics[0]["step"]
    for stage, rows in groupby(metrics, key=lambda row: row.get("stage")):
        end = list(rows)[-1]["step"]
        if stage is not None:
            axes.text((start + end) / 2, 1.01, stage, transform=axes.get_xaxis_transform(), ha="center", va="bottom")
        if end != metrics[-1]["step"]:
            axes.axvline(end, color=INK, linewidth=0.7, linestyle=(0, (2, 3)))
        start = end


def svg(figure: Figure, label: str) -> Markup:
    """`figure` as an SVG element for HTML: as wide as its place, named for screen readers, without date or version."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for stand_in, colour in _THEME.items():
        svg = svg.replace(stand_in, colour)
    # Several SVGs share one page, and with it one space of ids and one style sheet.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="(?:figure|axes|patch|line2d|text|legend|matplotlib\.axis|xtick|ytick)_\d+"', "", svg)
    name = Markup(' role="img" aria-label="{}"').format(label)
    return Markup(re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', lambda _: name, svg, count=1))
