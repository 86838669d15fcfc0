"""What commands share: the terminal, the progress bar, and common arguments."""

from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

console = Console(markup=False, emoji=False, highlight=False)  # a folder may be called v1[/x]

# The exit status of a command that wrote its output, but not of every row.
ROWS_SET_ASIDE = 3

Data = Annotated[Path, typer.Argument(help="Folder written by `mfpo build`, `mfpo rank` or `mfpo pairs`.")]
Out = Annotated[Path, typer.Option(help="Folder to write; it must not exist.")]
Model = Annotated[
    str,
    typer.Option(
        help="Folder of a model or adapter, a name on the Hub, or a book's name (`picturebook`, `picturebook-context`)."
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings; `mfpo settings COMMAND` lists them.")
]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings; KEY=VALUE overrides it.")]


def counted(rows: Iterable[T], text: str) -> Iterator[T]:
    """Yield the rows behind a progress bar, whether or not their number is known."""
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        yield from progress.track(rows, total=len(rows) if isinstance(rows, Sized) else None)


def say_set_aside(out: Path, summary: Any, rows: str, read: int) -> None:
    """Report which of the `read` rows of a summary were set aside and why, and end with a status of their own."""
    if not summary["set_aside"]:
        return
    console.print(f"{summary['set_aside']} of {read} {rows} set aside:", style="yellow")
    for reason, count in summary["reasons"].items():
        console.print(f"  {count} x {reason}")
    console.print(f"  each with its reason in {out / 'rejected_rows.jsonl'}")
    raise typer.Exit(ROWS_SET_ASIDE)
