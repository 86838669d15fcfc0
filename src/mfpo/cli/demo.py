"""The command `mfpo demo`."""

from pathlib import Path
from typing import Annotated

import typer

from mfpo.cli.console import Out, console


def demo(
    out: Out = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of data, training and held-out scenes.")] = 0,
) -> None:
    """Run the full pipeline on the picture book, in minutes on a CPU: build, rank, train DPO and MFPO, score, report.

    Example: mfpo demo --out runs/demo
    """
    from mfpo.demo import DemoSettings
    from mfpo.demo import demo as run

    run(out, DemoSettings(seed=seed), console=console)
