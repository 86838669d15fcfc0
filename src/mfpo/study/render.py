"""Render an experiment's result as a table for the terminal, as Markdown for the docs, and as a page with plots."""

from collections.abc import Iterable
from pathlib import Path

from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.table import Column
from rich.table import Table as Shown

from mfpo.folders import versions
from mfpo.report.page import Page, Panels, write
from mfpo.report.plots import limits_of, plot
from mfpo.report.tables import table as html_table
from mfpo.study.paper import BETWEEN_PAPERS, TITLES
from mfpo.study.results import Plot, Result, Table
from mfpo.study.statistics import PERCENT, Estimate
from mfpo.study.study import Study

# Behind a printed number that is in doubt; the notes say why.
_DOUBTED = "†"

# What the words of the verdicts mean, on each page that has some.
READING = (
    'In the list at the top, "as in the paper" and "against the paper" mean that the whole 95 % interval of our '
    'difference supports the paper\'s claim, or the opposite; "settled", that it excludes 0 where the paper has no '
    'number, or one in doubt; "not settled", that it includes 0. One seed settles nothing.'
)


def cells(result: Result, *, intervals: bool = True) -> tuple[list[str], list[list[str]]]:
    """The header and the rows: the paper's, in its order, each number with ours behind it, then what is only ours.

    Without `intervals`, columns and rows without a number of ours are left out.
    """
    table, paper = result.table, result.table.paper
    columns = [(whose, figure) for figure in paper.columns for whose in ("paper", "ours")]
    columns += [("ours", figure) for figure in table.columns if figure not in paper.columns]
    columns = [(whose, figure) for whose, figure in columns if whose == "paper" or figure in table.columns]
    rows = list(dict.fromkeys([*paper.rows, *table.rows]))
    if not intervals:
        columns = [column for column in columns if column[1] in table.columns]
        rows = [row for row in rows if row in table.rows]
    header = [
        f"{whose}: {_title(table, figure)}" if paper.columns else _title(table, figure) for whose, figure in columns
    ]
    names = [row if row in paper.rows or not paper.rows else f"ours: {row}" for row in rows]
    texts = [[_cell(table, row, whose, figure, intervals) for whose, figure in columns] for row in rows]
    return ["row", *header], [[name, *of_row] for name, of_row in zip(names, texts, strict=True)]


def _title(table: Table, figure: str) -> str:
    return table.columns.get(figure) or TITLES[figure]


def _cell(table: Table, row: str, whose: str, figure: str, intervals: bool) -> str:
    if whose == "ours":
        return _print(table.rows.get(row, {}).get(figure), _digits(figure), intervals)
    number = table.paper.rows.get(row, {}).get(figure)
    mark = _DOUBTED if table.paper.is_doubted(row, figure) else ""
    return "" if number is None else f"{number:.{_digits(figure)}f}{mark}"


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


def sentences(result: Result) -> list[str]:
    """What a page begins with: its lead, then the verdicts in words.

    What goes against the paper comes first, and of the others what points against the claim.
    """
    table = result.table
    order = ("against the paper", "one seed", "not settled", "as in the paper", "settled")
    texts = [*result.lead]
    for verdict in sorted(table.verdicts, key=lambda each: (order.index(each.word), each.gain.mean >= 0)):
        claim, gain = verdict.claim, verdict.gain
        figure, digits = table.columns.get(claim.figure, claim.figure), _digits(claim.figure)
        than = f"{abs(gain.mean):.{digits}f} {'better' if gain.mean >= 0 else 'worse'} than {claim.worse}"
        there = "" if claim.gain is None else f"; in the paper {claim.gain:.{digits}f} better"
        texts.append(f"{verdict.word}: in {figure}, {claim.better} is {than} ({interval(gain, digits)}){there}")
    return texts


def notes_of(result: Result) -> list[str]:
    """The notes of a page: how to read it, what is to be known about the paper's numbers, and the experiment's own."""
    table = result.table
    doubts = [f"{_DOUBTED} As printed; no verdict relies on it: {words}" for words in table.paper.doubts]
    small = [
        verdict.claim.gain
        for verdict in table.verdicts
        if verdict.claim.figure == "chair_s" and verdict.claim.gain is not None and verdict.claim.gain < BETWEEN_PAPERS
    ]
    if small:
        doubts.append(
            "The paper has one number per row, without a spread. Elsewhere CHAIR_s of one method differs by about "
            f"{BETWEEN_PAPERS} from paper to paper, so smaller differences within the paper say little."
        )
    empty = [row for row in table.paper.rows if row not in table.rows]
    lacking = [f"Without a number of ours: {', '.join(empty)}."] if empty else []
    return [*([READING] if table.verdicts else []), *doubts, *lacking, *result.notes]


def terminal(result: Result) -> Shown:
    """A table for the terminal, which is too narrow for intervals and has 80 columns at times."""
    header, rows = cells(result, intervals=False)
    # "paper: CHAIR_s" stands beside ours, so that "paper" is enough.
    names = ("paper" if name.startswith("paper: ") else name.removeprefix("ours: ") for name in header)
    columns = (Column(name, overflow="fold") for name in names)
    shown = Shown(*columns, title=result.title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        shown.add_row(*(cell.replace(" ±", "\n±") for cell in row))
    return shown


def markdown(result: Result, command: str, facts: dict[str, str]) -> str:
    """A page for the docs; the plots are in the page of `write_html`."""
    header, rows = cells(result)
    lines = [f"# {result.title}", ""]
    bullets = sentences(result)
    lines += [f"- {sentence}" for sentence in bullets] + [""] * bool(bullets)
    lines += [_row(header), _row(["---"] * len(header)), *(_row(row) for row in rows), ""]
    lines += [line for note in notes_of(result) for line in (note, "")]
    lines += ["```", command, "```", "", "; ".join(f"{name} {value}" for name, value in facts.items()) + "."]
    return "\n".join(lines) + "\n"


def _row(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def facts_of(study: Study) -> dict[str, str]:
    """What the pages of a study that has run say of it."""
    made_with = {package: " and ".join(sorted(of)) for package, of in study.versions.items()} or versions()
    seeds = ", ".join(map(str, study.seeds))
    return {"pairs": str(study.scale.pairs), "seeds": seeds, "scored on": study.scale.scored_on, **made_with}


def write_html(result: Result, path: Path, command: str, facts: dict[str, str]) -> None:
    """A self-contained page: the verdicts, the plots, the table."""
    header, rows = cells(result)
    lead = {f"{number}.": text for number, text in enumerate(sentences(result), start=1)}
    notes = [note.removesuffix(".") for note in notes_of(result)]  # the page adds a full stop
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
