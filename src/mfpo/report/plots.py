"""The pages' plots as inline SVG: the same bytes for the same numbers, readable on light and dark paper."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, groupby
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

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

# Colour and dashes: no line is told apart by its colour alone.
Look = tuple[str, str]

# What is given first is mostly the base model, which the others are measured against, so it is grey.
_LOOKS: tuple[Look, ...] = (
    *((GREY, "-"), (BLUE, "--"), (GREEN, "-."), (PURPLE, ":"), (ORANGE, "-"), (SKY, "--")),
    *((BLUE, "-"), (GREEN, ":"), (GREY, "--"), (PURPLE, "-")),
)
MODEL_COLOURS = tuple(colour for colour, _ in _LOOKS[:6])
_LEVEL_COLOURS = (SKY, ORANGE, RED, GREEN, PURPLE, BLUE, GREY)
# Letters of a legend that fit into a row of it, with 5 more for each line drawn; twice as many in a wide plot.
_LEGEND_LETTERS = 52


@dataclass(frozen=True, kw_only=True)
class Line:
    """The values `y` at `x`: with an interval, from `low` to `high`, or with the `raw` values that they smooth."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    raw: Sequence[float] | None = None


def looks_of(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name, the same in all plots of a page that are given these names."""
    return dict(zip(names, cycle(_LOOKS), strict=False))


def plot(
    lines: Mapping[str, Line],
    *,
    x_label: str,
    label: str,
    y_label: str = "",
    limits: tuple[float, float] | None = None,
    reference: float | None = None,
    wide: bool = False,
    looks: Mapping[str, Look] | None = None,
    stages: Sequence[Mapping[str, Any]] = (),
    log_x: bool = False,
) -> Markup:
    """Lines by name, each with the look of `looks`, or of `looks_of` the names.

    `label` is for screen readers. `limits` are those of the y axis; a thin line is drawn at `reference`;
    `wide` is for a plot without another beside; `stages` are lines of metrics.jsonl, whose stages are named and
    parted; `log_x` has a logarithmic x axis with a tick at each x.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4 if wide else 5.4, 3.1), layout="constrained")
        axes = figure.add_subplot()
        if reference is not None:
            axes.axhline(reference, color=INK, linewidth=0.7, linestyle=(0, (2, 3)))
        looks = looks or looks_of(lines)
        drawn = [_draw_line(axes, line, *looks[name]) for name, line in lines.items()]
        if limits:
            axes.set_ylim(limits)
        if log_x:
            ticks = sorted({x for line in lines.values() for x in line.x})
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axes.minorticks_off()
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))  # steps and layers
        axes.margins(x=0.01)
        _draw_stages(axes, stages)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if lines:
            # Handles and names, as matplotlib leaves out a label that begins with "_".
            figure.legend(drawn, list(lines), loc="outside upper left", ncols=_legend_columns(lines, wide))
        return svg(figure, label)


def _draw_line(axes: Axes, line: Line, colour: str, dashes: str) -> Line2D:
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
    if line.raw is not None:
        axes.plot(line.x, line.raw, color=colour, alpha=0.3, linewidth=0.8)
    return axes.plot(line.x, line.y, color=colour, linestyle=dashes)[0]


def _draw_stages(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Name each stage above the plot and draw a line where the next one begins."""
    start = metrics[0]["step"] if metrics else 0
    for stage, rows in groupby(metrics, key=lambda row: row.get("stage")):
        end = list(rows)[-1]["step"]
        if stage is not None:
            axes.text((start + end) / 2, 1.01, stage, transform=axes.get_xaxis_transform(), ha="center", va="bottom")
        if end != metrics[-1]["step"]:
            axes.axvline(end, color=INK, linewidth=0.7, linestyle=(0, (2, 3)))
        start = end


def _legend_columns(names: Iterable[str], wide: bool) -> int:
    widths = [len(name) + 5 for name in names]
    room = _LEGEND_LETTERS * (2 if wide else 1)
    return len(widths) if sum(widths) <= room else max(1, room // max(widths))


def limits_of(lines: Iterable[Line], *, contains: float = 0.0) -> tuple[float, float]:
    """y limits for plots side by side: all finite values, intervals and raw values of the lines, and `contains`."""
    parts = [part for line in lines for part in (line.y, line.low, line.high, line.raw) if part is not None]
    values = [value for part in parts for value in part if np.isfinite(value)]
    low, high = min([contains, *values]), max([contains, *values])
    pad = 0.06 * ((high - low) or 1.0)
    return low - (pad if low < contains else 0.0), high + pad


def bars(columns: Mapping[str, Mapping[str, float]], label: str) -> Markup:
    """Groups of bars, one group a metric: `columns` maps the metric's name to a value (percent) for each model."""
    models = list(dict.fromkeys(model for column in columns.values() for model in column))
    width = 0.8 / len(models)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 2.5), layout="constrained")
        axes = figure.add_subplot()
        drawn: list[Any] = []
        for number, model in enumerate(models):
            groups = [group for group, column in enumerate(columns.values()) if model in column]
            values = [column[model] for column in columns.values() if model in column]
            places = np.array(groups) + (number - (len(models) - 1) / 2) * width
            colour = MODEL_COLOURS[number % len(MODEL_COLOURS)]
            drawn.append(axes.bar(places, values, width * 0.92, color=colour))
            axes.bar_label(drawn[-1], fmt="%.1f", padding=1.5, fontsize=7.5)
        axes.set_xticks(range(len(columns)), list(columns))
        axes.tick_params(axis="x", length=0)
        axes.set_yticks([])
        axes.margins(x=0.02, y=0.12)
        figure.legend(drawn, models, loc="outside upper left", ncols=len(models), handlelength=0.9)
        return svg(figure, label)


def histogram(entropies: Sequence[float], levels: Sequence[str], label: str) -> Markup:
    """How many records have which entropy (nats), stacked by level, the easiest first."""
    by_level: dict[str, list[float]] = {}
    for entropy, level in sorted(zip(entropies, levels, strict=True)):
        by_level.setdefault(level, []).append(entropy)
    colours = [_LEVEL_COLOURS[number % len(_LEVEL_COLOURS)] for number in range(len(by_level))]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 2.3), layout="constrained")
        axes = figure.add_subplot()
        groups, names = list(by_level.values()), list(by_level)
        axes.hist(groups, bins=40, stacked=True, color=colours, label=names, rwidth=0.92)
        axes.set_xlabel("entropy of the chosen answer, nats")
        axes.set_ylabel("records")
        figure.legend(loc="outside upper left", ncols=len(names), handlelength=0.9)
        return svg(figure, label)


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
    kinds = r"figure|axes|patch|line2d|text|legend|matplotlib\.axis|xtick|ytick|FillBetweenPolyCollection"
    svg = re.sub(rf' id="(?:{kinds})_\d+"', "", svg)
    name = Markup(' role="img" aria-label="{}"').format(label)
    return Markup(re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', lambda _: name, svg, count=1))
