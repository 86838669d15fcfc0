"""The command `mfpo settings`."""

from dataclasses import MISSING, fields
from typing import Annotated, Any

import typer
from rich.table import Table

from mfpo.cli.console import console
from mfpo.errors import SettingError, brief


def show_settings(
    stage: Annotated[str, typer.Argument(help="build, rank, train, vcd, opera, judge or pretrain.")],
) -> None:
    """List the settings of a stage, with their defaults.

    Example: mfpo settings train
    """
    cls = _settings_class(stage)
    shown = Table("setting", "default", "what it does")
    for field in fields(cls):
        default = "" if field.default is MISSING else "null" if field.default is None else str(field.default)
        shown.add_row(field.name, default, field.metadata["help"])
    console.print(shown)


def _settings_class(stage: str) -> Any:
    from mfpo.answer.generate import DECODERS
    from mfpo.build.pipeline import CommandSettings
    from mfpo.evaluate.judge import JudgeSettings
    from mfpo.picturebook.pretrain import PretrainSettings
    from mfpo.rank.levels import RankSettings
    from mfpo.train.settings import TrainSettings

    classes: dict[str, Any] = {"build": CommandSettings, "rank": RankSettings, "train": TrainSettings}
    classes |= {name: decoder.settings for name, decoder in DECODERS.items() if name != "greedy"}  # has no settings
    classes |= {"judge": JudgeSettings, "pretrain": PretrainSettings}
    if stage not in classes:
        raise SettingError(f"no stage is named {brief(stage)}; there are {', '.join(classes)}")
    return classes[stage]
