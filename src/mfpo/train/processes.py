"""The processes that train together: one, unless `accelerate launch` or `torchrun` started several."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console

from mfpo.folders import whole_folder
from mfpo.models import device


def processes() -> PartialState:
    """The number of processes, and the index of this one. Do not store it: every Trainer creates a new state."""
    return PartialState(cpu=device().type == "cpu")


def say(message: str) -> None:
    """Print to stderr, from one process only."""
    if processes().is_main_process:
        Console(stderr=True, markup=False, highlight=False, soft_wrap=True).print(message)


def as_first_says(value: Any) -> Any:
    """The first process's `value`, in all of them."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


def gathered(found: dict[int, Any]) -> dict[int, Any]:
    """Every process's results for its rows, gathered in all processes."""
    if processes().num_processes == 1:
        return found
    return dict(item for items in gather_object([list(found.items())]) for item in items)


def share(rows: list[int]) -> list[int]:
    """The rows that this process works on."""
    state = processes()
    return rows[state.process_index :: state.num_processes]


@contextmanager
def common_folder(out: Path, made_by: dict[str, Any]) -> Iterator[Path]:
    """`whole_folder` for all processes: the first one makes it and renames it once all have left.

    Never removes checkpoints of another run; raises MfpoError instead.
    """
    if processes().is_main_process:
        with whole_folder(out, made_by, anew=False) as folder:
            processes().wait_for_everyone()
            yield folder
            processes().wait_for_everyone()
    else:
        processes().wait_for_everyone()
        yield out.with_name(out.name + ".partial")
        processes().wait_for_everyone()
