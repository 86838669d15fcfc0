"""The commands `mfpo inspect` and `mfpo report`: HTML pages."""

from pathlib import Path
from typing import Annotated

import typer

from mfpo.cli.console import Data, console
from mfpo.folders import check_run, check_shards


def inspect(data: Data) -> None:
    """Write a page that shows a dataset: images, regions, rejected images, answers with their keywords.

    Example: mfpo inspect data/photos
    """
    check_shards(data)
    from mfpo.report import inspect as run  # seconds of imports: a mistake is told before them

    console.print(f"open {run(data)}")


def report(run: Annotated[Path, typer.Argument(help="Folder written by `mfpo demo` or `mfpo train`.")]) -> None:
    """Write report.html into a run folder: table, curves, examples, all in one file.

    Example: mfpo report runs/mfpo
    """
    check_run(run)
    from mfpo.report import write_report

    console.print(f"open {write_report(run)}")
