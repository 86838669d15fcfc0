"""The tables of `mfpo train --dry-run`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from mfpo.cli.console import console

if TYPE_CHECKING:
    from mfpo.train.dry_run import DryRun

_MEMORY = {
    "weights": "weights",
    "reference": "reference model",
    "optimizer": "optimizer's state",
    "gradients": "gradients",
    "activations": "activations",
    "working": "one layer's backward pass",
    "peak": "peak",
}


def show(found: "DryRun") -> None:
    """Print all of it, the first batch last."""
    parts = [
        (name, f"{part.trained:,}", f"{part.frozen:,}")
        for name, part in found.parameters.items()
        if part.trained + part.frozen
    ]
    _print(["parameters", "trained", "frozen"], parts)
    stages = [(stage.name, f"{stage.records:,}", f"{stage.steps:,}") for stage in found.stages]
    _print(["stage", "records", "steps"], stages)
    step = [
        ("sequences per step", f"{found.sequences:,.0f}"),
        ("tokens per step", f"{found.tokens:,.0f}"),
        ("tokens saved by shared prefixes", f"{100 * found.tokens_saved:.0f} %"),
    ]
    _print(["first step of each stage, on average", ""], step)
    passes = [
        (name, f"{of.answers:,}", f"{of.kept:,}", str(of.file.parent))
        for name, of in zip(("records", "held-out pairs"), found.reference, strict=False)
    ]
    _print(["reference pass: answers of", "to compute", "kept", "in"], passes)
    memory = [
        (label, *(f"{getattr(device_memory, name) / 2**30:.2f}" for device_memory in found.memory.values()))
        for name, label in _MEMORY.items()
    ]
    _print(["memory, GiB, estimated", *found.memory], memory)
    console.print("gradients appear as activations are freed: the peak holds the larger of the two", style="dim")
    shown = Table("record", "first batch", "tokens", Column("text", overflow="fold"))
    for row in found.batch:
        is_prompt = row.sequence == "prompt"
        # As Text, which leaves out control characters and reads no markup.
        text = Text(row.text) if is_prompt else Text(f"«{row.text}»", style="bold")
        shown.add_row(Text(row.record) if is_prompt else "", row.sequence, f"{row.tokens:,}", text)
    console.print(shown)
    console.print("the tokens between « and » are scored; nothing was trained or written", style="dim")


def _print(head: list[str], rows: Iterable[tuple[str, ...]]) -> None:
    name, *numbers = head
    shown = Table(Column(name, overflow="fold"), *(Column(number, justify="right") for number in numbers))
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
