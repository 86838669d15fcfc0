"""The page of a probe, as self-contained as the other pages: plots with intervals side by side, tables, pictures."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mfpo.report.page import Page, write
from mfpo.report.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from mfpo.report.plots import INK, STYLE, svg
from mfpo.report.sections import Panels

# A model or run has one look in all plots of a page; what is given first is mostly the base model, so it is grey.
_LOOKS = (
    *((GREY, "-"), (BLUE, "--"), (GREEN, "-."), (PURPLE, ":"), (ORANGE, "-"), (SKY, "--")),
    *((BLUE, "-"), (GREEN, ":"), (GREY, "--"), (PURPLE, "-")),
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """The values `y` at `x`: with an interval, from `low` to `high`, or with the `raw` values that they smooth."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    raw: Sequence[float] | None = None


def plot(
    lines: Mapping[str, Line],
    *,
    x_label: str,
    y_label: str,
    label: str,
    limits: tuple[float, float] | None = None,
    reference: float | None = None,
    wide: bool = False,
    names: Sequence[str] = (),
    log_x: bool = False,
) -> Markup:
    """One look a name, in the order of `lines`, or of `names` where some of these have no line in this plot.

    `label` is read to who cannot see the plot. `limits` are those of the y axis; a thin line is drawn at `reference`;
    `wide` is for a plot without another beside; `log_x` has a logarithmic x axis with a tick at each x.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4 if wide else 5.4, 3.1), layout="constrained")
        axes = figure.add_subplot()
        if reference is not None:
            axes.axhline(reference, color=INK, linewidth=0.7, linestyle=(0, (2, 3)))
        looks = dict(zip(names or lines, cycle(_LOOKS), strict=False))
        for name, line in lines.items():
            colour, dashes = looks[name]
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
            if line.raw is not None:
                axes.plot(line.x, line.raw, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(line.x, line.y, color=colour, linestyle=dashes, label=name)
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
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if lines:
            fitting = int((100 if wide else 50) / (max(map(len, lines)) + 5))
            figure.legend(loc="outside upper left", ncols=max(1, min(fitting, len(lines))))
        # A page has one space of ids, and matplotlib numbers what it fills anew in each plot.
        return Markup(re.sub(r' id="FillBetweenPolyCollection_\d+"', "", svg(figure, label)))


def limits_of(lines: Sequence[Line], *, contains: float = 0.0) -> tuple[float, float]:
    """y limits for plots side by side: all lines, their intervals and raw values, and `contains`."""
    parts = [part for line in lines for part in (line.y, line.low, line.high, line.raw) if part is not None]
    values = [value for part in parts for value in part]
    low, high = min([contains, *values]), max([contains, *values])
    pad = 0.06 * ((high - low) or 1.0)
    return low - (pad if low < contains else 0.0), high + pad


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table, every text escaped; the first cell of a row names it."""
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(text) for text in header)
    body = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            row[0], Markup("").join(Markup("<td>{}</td>").format(text) for text in row[1:])
        )
        for row in rows
    )
    return Markup('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
        head, body
    )


def write_page(path: Path, headline: str, lead: Mapping[str, str], panels: Sequence[Panels], facts: object) -> None:
    """Write the page; `lead` holds a sentence for each name, `facts` the settings at its foot, by name."""
    shown = {name: str(value) for name, value in vars(facts).items()}
    page = Page(
        kind="report",
        title=f"{headline} · mfpo",
        headline=headline,
        lead=dict(lead),
        panels=list(panels),
        facts={"Settings": shown},
    )
    write(page, path)
