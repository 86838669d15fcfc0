"""What the commands share: the terminal, the bar that counts rows, and the arguments that several take."""

from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

console = Console(markup=False, emoji=False, highlight=False)  # a folder may be called v1[/x]

# The exit status of a command that wrote its output, but not of every row.
ROWS_SET_ASIDE = 3

Data = Annotated[Path, typer.Argument(help="Folder written by `mfpo build` or `mfpo rank`.")]
Out = Annotated[Path, typer.Option(help="Folder to write; it must not exist.")]
Model = Annotated[str, typer.Option(help="Folder of a model or adapter, a name on the hub, or `picturebook`.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings; `mfpo settings STAGE` lists them.")
]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings; KEY=VALUE goes before it.")]


def counted(rows: Iterable[T], text: str) -> Iterator[T]:
    """The rows behind a bar that counts them, also where nobody knows how many there are."""
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        yield from progress.track(rows, total=len(rows) if isinstance(rows, Sized) else None)
