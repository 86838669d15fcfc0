"""A dataset probe's outputs: all figures as JSON, and a page with a line per model."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mfpo.evaluate.figures import Figure
from mfpo.folders import versions, write_json
from mfpo.probe.cases import Cases
from mfpo.report.page import Page, Panels, write
from mfpo.report.plots import Line


def write_results(
    folder: Path,
    headline: str,
    question: str,
    *,
    data: Path,
    settings: Any,
    cases: Cases,
    rows: Sequence[Any],
    panels: Sequence[Panels],
) -> None:
    """Write results.json with the figures `rows` and report.html with the `panels` into `folder`."""
    used = asdict(settings)
    results: dict[str, Any] = {"settings": used, "data": str(data), "set_aside": cases.set_aside}
    results |= {"figures": [asdict(row) for row in rows], "versions": versions()}
    write_json(folder / "results.json", results)
    lead = {f"Records: {len(cases.rows)}.": question}
    write(Page(headline=headline, lead=lead, panels=panels, facts={"Settings": used}), folder / "report.html")


def lines_by_model(rows: Sequence[Any], x: str, y: str) -> dict[str, Line]:
    """The figure `y` of the rows over their `x`, with its interval, a line for each model."""
    lines = {}
    for name in dict.fromkeys(row.model for row in rows):
        of_model = sorted((row for row in rows if row.model == name), key=lambda row: getattr(row, x))
        figures: list[Figure] = [getattr(row, y) for row in of_model]
        lines[name] = Line(
            x=[getattr(row, x) for row in of_model],
            y=[figure.value for figure in figures],
            low=[figure.low for figure in figures],
            high=[figure.high for figure in figures],
        )
    return lines
