"""The command `mfpo settings`."""

import difflib
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from rich.table import Table

from mfpo.answer.decoders import DECODERS
from mfpo.answer.settings import AnswerSettings
from mfpo.cli.console import console
from mfpo.errors import SettingError, brief


class _Known(NamedTuple):
    """What takes the settings, and the module and name of their class, which is imported when it is asked for."""

    user: str
    module: str
    name: str


_KNOWN = {
    "build": _Known("mfpo build", "mfpo.build.settings", "CommandSettings"),
    "rank": _Known("mfpo rank", "mfpo.rank.settings", "RankSettings"),
    "train": _Known("mfpo train", "mfpo.train.settings", "TrainSettings"),
    "answer": _Known("mfpo answer", "mfpo.answer.settings", "AnswerSettings"),
    "judge": _Known("mfpo eval mmhal, llava-bench, object-halbench", "mfpo.evaluate.judge", "JudgeSettings"),
    "distortion": _Known("mfpo probe distortion", "mfpo.probe.settings", "DistortionSettings"),
    "attention": _Known("mfpo probe attention", "mfpo.probe.settings", "AttentionSettings"),
    "rewards": _Known("mfpo probe rewards", "mfpo.probe.settings", "RewardsSettings"),
    "study": _Known("mfpo reproduce --scale paper", "mfpo.study.real_settings", "RealSettings"),
    "demo": _Known("mfpo demo", "mfpo.demo_settings", "DemoSettings"),
    "pretrain": _Known("mfpo picturebook pretrain", "mfpo.picturebook.pretrain", "PretrainSettings"),
}


def show_settings(
    name: Annotated[str | None, typer.Argument(help="Whose settings; without a name, what has some.")] = None,
) -> None:
    """List the settings that a command, a decoder or a judge takes as KEY=VALUE, with their defaults.

    Example: mfpo settings train
    """
    if name is None:
        shown = Table("name", "settings of")
        for known, (user, _, _) in _KNOWN.items():
            shown.add_row(known, user)
        for decoder in DECODERS:
            shown.add_row(decoder, f"mfpo answer --decode {decoder}")
        console.print(shown)
        return
    names = [*_KNOWN, *DECODERS]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise SettingError(f"nothing with settings is named {brief(name)}; {hint}")
    shown = Table("setting", "default", "what it does")
    if name in DECODERS:
        chosen: Any = AnswerSettings.chosen(name)
    else:
        chosen = getattr(import_module(_KNOWN[name].module), _KNOWN[name].name)
    for field in fields(chosen):
        default = "" if field.default is MISSING else "null" if field.default is None else str(field.default)
        shown.add_row(field.name, default, field.metadata["help"])
    console.print(shown)
