"""The commands of `mfpo probe`: only parsing, calls and tables."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from mfpo.cli.console import ROWS_SET_ASIDE, Config, Out, Overrides, console
from mfpo.errors import SettingError
from mfpo.folders import check_shards
from mfpo.picturebook import model_folder
from mfpo.probe.settings import AttentionSettings, DistortionSettings, RewardsSettings
from mfpo.settings import read_settings

probe_app = typer.Typer(help="See what a model looks at (paper, Figures 1 and 2).", no_args_is_help=True)

Data = Annotated[Path, typer.Argument(help="Folder written by `mfpo build`, with regions.")]
Models = Annotated[list[str], typer.Option("--model", help="As in `mfpo train`; may be repeated.")]


@probe_app.command("distortion")
def probe_distortion(data: Data, model: Models, out: Out, config: Config = None, overrides: Overrides = None) -> None:
    """Measure how image noise changes answers: the share of unchanged answers, the drop in log p(y_w).

    Exit status 3 says that records were set aside, such as those without a region.

    `mfpo settings distortion` lists every KEY=VALUE.

    Example: mfpo probe distortion data/built --model picturebook --model runs/mfpo/model --out probes/distortion
    """
    settings = read_settings(DistortionSettings, config, overrides or [])
    models = _models(data, model)
    from mfpo.probe.distortion import INPAINTED, WHERE  # seconds of imports: a mistake is told before them
    from mfpo.probe.distortion import probe_distortion as run

    result = run(data, models, out, settings)
    shown = Table(Column("model", overflow="fold"), "noise in", "step", "same answers, %", "drop of log p(y_w), nats")
    for row in result.rows:
        place, step = (WHERE | INPAINTED)[row.where], "" if row.step is None else str(row.step)
        shown.add_row(row.model, place, step, _figure(row.same, 1), _figure(row.drop, 2))
    _finish(shown, out, result.cases)


@probe_app.command("attention")
def probe_attention(data: Data, model: Models, out: Out, config: Config = None, overrides: Overrides = None) -> None:
    """Measure how much attention the answer's object words pay to the object in the image, by layer.

    For models like LLaVA-1.5. Exits with status 3 if records were set aside, such as those without a region.

    `mfpo settings attention` lists every KEY=VALUE.

    Example: mfpo probe attention data/built --model picturebook --model runs/mfpo/model --out probes/attention
    """
    settings = read_settings(AttentionSettings, config, overrides or [])
    models = _models(data, model)
    from mfpo.probe.attention import probe_attention as run

    result = run(data, models, out, settings)
    columns = ("layer", "inside the mask", "elsewhere in the image", "inside, relative to area")
    shown = Table(Column("model", overflow="fold"), *columns)
    for row in result.rows:
        figures = (_figure(row.inside, 3), _figure(row.elsewhere, 3), _figure(row.preference, 2))
        shown.add_row(row.model, str(row.layer), *figures)
    _finish(shown, out, result.cases)


@probe_app.command("rewards")
def probe_rewards(
    words: Annotated[
        list[str],
        typer.Argument(metavar="RUN|KEY=VALUE", help="Folders written by `mfpo train`, and settings."),
    ],
    out: Out,
    config: Config = None,
) -> None:
    """Plot text and image margins over training, and their balance.

    Example: mfpo probe rewards runs/dpo runs/mfpo --out probes/rewards window=5
    """
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    runs = [Path(word) for word in words if word not in overrides]
    settings = read_settings(RewardsSettings, config, overrides)
    if not runs:
        raise SettingError("no run is given; give folders written by `mfpo train`")
    from mfpo.probe.rewards import HEADER, row_of
    from mfpo.probe.rewards import probe_rewards as run

    shown = Table(*HEADER)
    for name, end in run(runs, out, settings).items():
        shown.add_row(*row_of(name, end))
    console.print(shown)
    console.print(f"open {out / 'report.html'}")


def _models(data: Path, names: list[str]) -> dict[str, Path]:
    """The models' folders by the names given; also checks that the dataset exists."""
    if len(set(names)) < len(names):
        raise SettingError("a model is given twice; name each once")
    check_shards(data)
    return {name: model_folder(name) for name in names}


def _figure(figure: Any, digits: int) -> str:
    return f"{figure.value:.{digits}f} ({figure.low:.{digits}f} to {figure.high:.{digits}f})"


def _finish(shown: Table, out: Path, cases: Any) -> None:
    """Report what was found and set aside; records set aside give an exit status of their own."""
    console.print(shown)
    console.print(f"Records: {len(cases.rows)}. Intervals: 95 %. Open {out / 'report.html'}")
    if cases.set_aside:
        console.print(f"Set aside: {len(cases.set_aside)}", style="yellow")
        for reason, count in cases.reasons().items():
            console.print(f"  {count} x {reason}")
        console.print(f"  by id in {out / 'results.json'}")
        raise typer.Exit(ROWS_SET_ASIDE)
