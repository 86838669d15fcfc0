"""The commands of `mfpo probe`: nothing but parsing, calls and tables."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from mfpo.cli.build import ROWS_SET_ASIDE
from mfpo.cli.console import console
from mfpo.errors import SettingError

probe_app = typer.Typer(help="See what a model looks at (paper, Figures 1 and 2).", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder to write; it must not exist.")]


Data = Annotated[Path, typer.Argument(help="Folder written by `mfpo build`, with regions.")]
Models = Annotated[
    list[str], typer.Option("--model", help="Folder of a model or adapter, or `picturebook`; may be given again.")
]
Limit = Annotated[int | None, typer.Option(help="Records at even distances; all of them otherwise.")]


@probe_app.command("distortion")
def probe_distortion(
    data: Data,
    model: Models,
    out: Out,
    steps: Annotated[str, typer.Option(help="Noise steps, 0 to 999.")] = "0,100,200,300,400,500,600,700,800,900,999",
    schedule: Annotated[str, typer.Option(help="sigmoid, linear or cosine.")] = "sigmoid",
    seed: Annotated[int, typer.Option(help="Seed of the noise, which is one draw a record.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of the longest answer.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Records at a time.")] = 32,
    limit: Limit = None,
) -> None:
    """What noise in the image does to the answers: the share that stays the same, the drop of log p(y_w).

    Exit status 3 says that records were set aside, such as those without a region.

    Example: mfpo probe distortion data/built --model picturebook --model runs/mfpo/model --out probes/distortion
    """
    from mfpo.probe.distortion import WHERE, DistortionSettings
    from mfpo.probe.distortion import probe_distortion as run

    if not all(step.strip().isdecimal() for step in steps.split(",")):
        raise SettingError(f"--steps is {steps!r}, but must be numbers as 0,500,999")
    settings = DistortionSettings(
        steps=tuple(map(int, steps.split(","))),
        schedule=schedule,  # type: ignore[arg-type]  # which the settings check
        seed=seed,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        limit=limit,
    )
    result = run(data, _models(model), out, settings)
    shown = Table(Column("model", overflow="fold"), "noise in", "step", "same answers, %", "drop of log p(y_w), nats")
    for row in result.rows:
        shown.add_row(row.model, WHERE[row.where], str(row.step), _figure(row.same, 1), _figure(row.drop, 2))
    _finish(shown, out, result.cases)


@probe_app.command("attention")
def probe_attention(
    data: Data,
    model: Models,
    out: Out,
    at: Annotated[
        str, typer.Option(help="word: attention of the word's own tokens; before: of those before.")
    ] = "word",
    drawn: Annotated[int, typer.Option(help="Records that are drawn.")] = 6,
    limit: Limit = None,
) -> None:
    """How much of their attention an answer's words for an object give to the object in the image, by layer.

    For models of LLaVA-1.5's kind. Exit status 3 says that records were set aside, such as those without a region.

    Example: mfpo probe attention data/built --model picturebook --model runs/mfpo/model --out probes/attention
    """
    from mfpo.probe.attention import AttentionSettings
    from mfpo.probe.attention import probe_attention as run

    settings = AttentionSettings(at=at, drawn=drawn, limit=limit)  # type: ignore[arg-type]  # which they check
    result = run(data, _models(model), out, settings)
    shown = Table(
        Column("model", overflow="fold"),
        "layer",
        "inside the mask",
        "elsewhere in the image",
        "inside, relative to area",
    )
    for row in result.rows:
        figures = (_figure(row.inside, 3), _figure(row.elsewhere, 3), _figure(row.preference, 2))
        shown.add_row(row.model, str(row.layer), *figures)
    _finish(shown, out, result.cases)


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


def _models(names: list[str]) -> dict[str, Path]:
    """The folders of models, by the names they were given by."""
    from mfpo.picturebook import model_folder

    if len(set(names)) < len(names):
        raise SettingError("a model is given twice; name each once")
    return {name: model_folder(name) for name in names}


def _figure(figure: Any, digits: int) -> str:
    return f"{figure.value:.{digits}f} ({figure.low:.{digits}f} to {figure.high:.{digits}f})"


def _finish(shown: Table, out: Path, cases: Any) -> None:
    """Say what was found and what was set aside; the latter ends the command with a status of its own."""
    console.print(shown)
    console.print(f"{len(cases.rows)} records; 95 % intervals; open {out / 'report.html'}")
    if cases.set_aside:
        console.print(f"{len(cases.set_aside)} records set aside:", style="yellow")
        for reason, count in cases.reasons().items():
            console.print(f"  {count} x {reason}")
        console.print(f"  by id in {out / 'results.json'}")
        raise typer.Exit(ROWS_SET_ASIDE)
