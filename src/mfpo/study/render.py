"""Render an experiment's result as a table for the terminal, as Markdown for the docs, and as a page with plots."""

from collections.abc import Iterable
from pathlib import Path

from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.table import Column
from rich.table import Table as Shown

from mfpo.report.page import Page, Panels, write
from mfpo.report.plots import limits_of, plot
from mfpo.report.tables import table as html_table
from mfpo.study.paper import TABLE1_COLUMNS
from mfpo.study.results import Plot, Result, Table
from mfpo.study.statistics import PERCENT, Estimate

# The paper's name of a figure, where it is not ours.
_IN_PAPER = {"cover": "amber_cover"}


def cells(result: Result, *, intervals: bool = True) -> tuple[list[str], list[list[str]]]:
    """The header and the rows: each figure with the paper's beside it, then what only the paper has.

    Without `intervals` the latter is left out, too.
    """
    table = result.table
    quoted = list(dict.fromkeys(name for row in table.paper.values() for name in row))
    columns: list[tuple[str, str]] = []
    for figure in table.columns:
        in_paper = _IN_PAPER.get(figure, figure)
        columns += [("ours", figure), *([("paper", in_paper)] if in_paper in quoted else [])]
    if intervals:
        columns += [("paper", name) for name in quoted if ("paper", name) not in columns]
    titles = TABLE1_COLUMNS | dict(table.columns)
    names = {("ours", figure): title for figure, title in table.columns.items()}
    names |= {("paper", name): f"paper: {titles.get(name, name.replace('_', ' '))}" for name in quoted}
    rows = [
        [
            row,
            *(
                _print(figures.get(figure), _digits(figure), intervals)
                if whose == "ours"
                else f"{table.paper.get(row, {}).get(figure, '')}"
                for whose, figure in columns
            ),
        ]
        for row, figures in table.rows.items()
    ]
    return ["row", *(names[column] for column in columns)], rows


def _digits(figure: str) -> int:
    """How many decimals are shown of a figure."""
    return 1 if figure in PERCENT else 2


def _print(estimate: Estimate | None, digits: int, intervals: bool) -> str:
    """A mean, the spread between seeds, and its interval."""
    if estimate is None:
        return ""
    spread = "" if estimate.spread is None else f" ± {estimate.spread:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{spread}" + (f" ({interval(estimate, digits)})" if intervals else "")


def interval(estimate: Estimate, digits: int) -> str:
    """The interval's ends."""
    return f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"


def sentences(table: Table) -> list[str]:
    """The verdicts in words, what goes against the paper first, and of the others what points against the claim."""
    order = ("against the paper", "one seed", "not settled", "as in the paper", "settled")
    told = []
    for verdict in sorted(table.verdicts, key=lambda each: (order.index(each.word), each.gain.mean >= 0)):
        claim, gain = verdict.claim, verdict.gain
        figure, digits = table.columns.get(claim.figure, claim.figure), _digits(claim.figure)
        than = f"{abs(gain.mean):.{digits}f} {'better' if gain.mean >= 0 else 'worse'} than {claim.worse}"
        told.append(f"{verdict.word}: in {figure}, {claim.better} is {than} ({interval(gain, digits)})")
    return told


def terminal(result: Result) -> Shown:
    """A table for the terminal, which is too narrow for intervals and has 80 columns at times."""
    header, rows = cells(result, intervals=False)
    # "paper: CHAIR_s" stands beside CHAIR_s, so that "paper" is enough.
    names = (name.partition(":")[0] for name in header)
    columns = (Column(name, overflow="fold") for name in names)
    shown = Shown(*columns, title=result.title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        shown.add_row(*(cell.replace(" ±", "\n±") for cell in row))
    return shown


def markdown(result: Result, name: str, command: str, facts: dict[str, str]) -> str:
    """A page for the docs; the plots are in the page of `write_html`, html/NAME.html."""
    header, rows = cells(result)
    lines = [f"# {result.title}", ""]
    lines += [f"- {sentence}" for sentence in sentences(result.table)] + [""] * bool(result.table.verdicts)
    lines += [_row(header), _row(["---"] * len(header)), *(_row(row) for row in rows), ""]
    notes = [*result.notes, *([f"[The plots](html/{name}.html)."] if result.plots else [])]
    lines += [line for note in notes for line in (note, "")]
    lines += ["```", command, "```", "", "; ".join(f"{name} {value}" for name, value in facts.items()) + "."]
    return "\n".join(lines) + "\n"


def _row(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def write_html(result: Result, path: Path, command: str, facts: dict[str, str]) -> None:
    """A self-contained page: the verdicts, the plots, the table."""
    header, rows = cells(result)
    lead = {f"{number}.": text for number, text in enumerate(sentences(result.table), start=1)}
    notes = [note.removesuffix(".") for note in result.notes]  # the page adds a full stop
    lead |= {f"Note {number}:" if notes[1:] else "Note:": note for number, note in enumerate(notes, start=1)}
    has_bands = any(line.low is not None for drawn in result.plots for line in drawn.lines.values())
    bands = "Bands are 95 % intervals." if has_bands else "Faint lines are the values before smoothing."
    if len(result.plots) == 1 or any(len(drawn.lines) > 6 for drawn in result.plots):
        panels = [Panels(drawn.title, bands, {"": _draw(drawn, wide=True)}) for drawn in result.plots]
    else:
        beside = {drawn.title: _draw(drawn, wide=False) for drawn in result.plots}
        panels = [Panels("Plots", bands, beside)] if beside else []
    shown = html_table(header, [[row[0], *map(_two_lines, row[1:])] for row in rows])
    panels.append(Panels("Figures", "Mean over seeds ± their spread, below it the 95 % interval.", {"": shown}))
    page = Page(headline=result.title, lead=lead, panels=panels, facts={"Settings": {"command": command, **facts}})
    write(page, path)


def _two_lines(text: str) -> Markup:
    """A cell with its interval below."""
    value, space, ends = text.partition(" (")
    return Markup("{}<br><small>({}</small>").format(value, ends) if space else Markup("{}").format(text)


def _draw(drawn: Plot, *, wide: bool) -> Markup:
    return plot(
        drawn.lines,
        x_label=drawn.x_label,
        y_label=drawn.y_label,
        label=f"{drawn.title}: {', '.join(drawn.lines)}; the table has the figures",
        limits=limits_of(drawn.lines.values()),
        wide=wide,
        log_x=drawn.log_x,
    )
