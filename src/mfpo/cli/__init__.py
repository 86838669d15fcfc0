"""The commands, one file each: only parsing and calls."""

import errno
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

# Weights come from folders or are asked for by name; progress bars are ours.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import typer
from rich.console import Console

from mfpo.cli.answer import answer
from mfpo.cli.build import build
from mfpo.cli.console import console
from mfpo.cli.demo import demo
from mfpo.cli.evaluate import eval_app
from mfpo.cli.pairs import pairs
from mfpo.cli.picturebook import book_app
from mfpo.cli.probe import probe_app
from mfpo.cli.rank import rank
from mfpo.cli.report import inspect, report
from mfpo.cli.reproduce import reproduce
from mfpo.cli.settings import show_settings
from mfpo.cli.train import merge, train
from mfpo.errors import MfpoError, brief, one_line
from mfpo.registry import load_plugin

app = typer.Typer(
    help="Make vision-language models hallucinate less, by Modality-Fair Preference Optimization.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (demo, pairs, build, inspect, rank, train, answer, report, merge):
    app.command()(_command)
app.command("settings")(show_settings)
app.command()(reproduce)
app.add_typer(eval_app, name="eval")
app.add_typer(probe_app, name="probe")
app.add_typer(book_app, name="picturebook")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the log, and tracebacks.")] = False,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.py", help="Your own sources, segmenters, objectives, ...; docs/extending.md."),
    ] = None,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    # As soon as transformers imports it, it warns that a faster kernel for CPUs is not installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for file in plugin or []:
        load_plugin(file)
    if context.invoked_subcommand is None:
        console.print(context.get_help())


def main() -> None:
    """Run a command. A user's mistake is one line on stderr and exit status 1; -v shows the traceback."""
    warnings.filterwarnings("ignore", category=RuntimeWarning, message="Image size")  # PIL's on bombs, which we refuse
    # What peft asks of transformers, as plain peft does too.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing")
    try:
        app()
    except MfpoError as error:
        if "-v" in sys.argv or "--verbose" in sys.argv:
            raise
        # Progress bars that its frames hold are drawn for the last time now, not below the error.
        traceback.clear_frames(error.__traceback__)
        _complain(f"error: {one_line(error)}")
        sys.exit(1)
    except ImportError as error:
        fault = _fault_of_torchvision(error)
        if fault is None or "-v" in sys.argv or "--verbose" in sys.argv:
            raise
        _complain(
            f"error: the torchvision installed here cannot be imported ({fault}); install the build that is made for "
            "this torch, from the same index, or `pip uninstall torchvision`"
        )
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _complain(
            f"error: the disk is full ({error.strerror or error}); free some space and run the same command again"
        )
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == 130:  # what typer makes of Ctrl-C
            _complain("stopped" + _kept(sys.argv[1:]))
        raise


def _fault_of_torchvision(error: BaseException) -> str | None:
    """What torchvision raised when transformers, which imports it wherever it is installed, could not be imported."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return brief(str(cause)) if cause is not error and "torchvision" in str(cause) else None


def _kept(arguments: Iterable[str]) -> str:
    """What a command that was stopped has kept for the next time, if anything."""
    saved_work = {
        "pairs": "the complete shards so far",
        "build": "the complete shards so far",
        "rank": "the entropies measured so far",
        "train": "the last checkpoint, if any",
        "answer": "the answers so far",
        "eval": "the judge's verdicts so far, if any",
        "demo": "the finished parts",
        "reproduce": "the finished parts",
    }
    command = next((word for word in arguments if word in saved_work), None)
    return f"; run the same command again to reuse {saved_work[command]}" if command else ""


def _complain(message: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        time.sleep(30)  # a launcher ends all processes when one fails: what the first one says too is said once.
    Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False).print(message)
