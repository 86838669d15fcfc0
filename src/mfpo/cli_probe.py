"""The commands of `mfpo probe`: nothing but parsing, calls and tables."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

probe_app = typer.Typer(help="See what a model looks at (paper, Figures 1 and 2).", no_args_is_help=True)
console = Console(markup=False, emoji=False, highlight=False)

Out = Annotated[Path, typer.Option(help="Folder to write; it must not exist.")]


@probe_app.callback()
def _root() -> None:
    """A group even while it holds one command."""


@probe_app.command("rewards")
def probe_rewards(
    runs: Annotated[list[Path], typer.Argument(help="Folders written by `mfpo train`.")],
    out: Out,
    window: Annotated[int, typer.Option(help="Lines of metrics.jsonl that a smoothed value is the mean of.")] = 5,
) -> None:
    """Text and image margins over training, and their balance.

    Example: mfpo probe rewards runs/dpo runs/mfpo --out probes/rewards
    """
    from mfpo.probe.rewards import HEADER, RewardsSettings, row_of
    from mfpo.probe.rewards import probe_rewards as run

    shown = Table(*HEADER)
    for name, end in run(runs, out, RewardsSettings(window=window)).items():
        shown.add_row(*row_of(name, end))
    console.print(shown)
    console.print(f"open {out / 'report.html'}")
