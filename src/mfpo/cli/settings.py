"""The command `mfpo settings`."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, fields
from importlib import import_module
from typing import Annotated, Any

import typer
from rich.table import Table

from mfpo.answer.decoders import DECODERS
from mfpo.build.regions import SEGMENTERS
from mfpo.cli.console import console
from mfpo.errors import SettingError, brief, nearest
from mfpo.evaluate.benchmark import BENCHMARKS
from mfpo.pairs.check import CHECKERS
from mfpo.registry import Registry
from mfpo.settings import ChosenSettings, Settings, with_options
from mfpo.train.objectives import OBJECTIVES

# What takes the settings, and the module and name of their class, which is imported when it is asked for.
_CLASSES = {
    "build": ("mfpo build", "mfpo.build.settings", "CommandSettings"),
    "pairs": ("mfpo pairs", "mfpo.pairs.settings", "PairsSettings"),
    "rank": ("mfpo rank", "mfpo.rank.settings", "RankSettings"),
    "train": ("mfpo train", "mfpo.train.settings", "TrainSettings"),
    "answer": ("mfpo answer", "mfpo.answer.settings", "AnswerSettings"),
    "judge": ("every benchmark with a judge", "mfpo.answer.judge_settings", "JudgeSettings"),
    "distortion": ("mfpo probe distortion", "mfpo.probe.settings", "DistortionSettings"),
    "attention": ("mfpo probe attention", "mfpo.probe.settings", "AttentionSettings"),
    "rewards": ("mfpo probe rewards", "mfpo.probe.settings", "RewardsSettings"),
    "reproduce": ("mfpo reproduce --scale paper", "mfpo.study.real_settings", "RealSettings"),
    "demo": ("mfpo demo", "mfpo.demo_settings", "DemoSettings"),
    "pretrain": ("mfpo picturebook pretrain", "mfpo.picturebook.pretrain_settings", "PretrainSettings"),
    "pretrain-context": ("its --book picturebook-context", "mfpo.picturebook.pretrain_settings", "ContextSettings"),
}
# The functions that bring settings of their own, by the command that takes them.
_FUNCTIONS: dict[str, Registry[Callable[..., Any]]] = {
    "mfpo build --regions {}": SEGMENTERS,
    "mfpo answer --decode {}": DECODERS,
    "mfpo eval {}": BENCHMARKS,
}


def show_settings(
    name: Annotated[str | None, typer.Argument(help="Command, decoder or benchmark; leave it out to list all.")] = None,
) -> None:
    """List the settings that a command, a decoder or a benchmark takes as KEY=VALUE, with their defaults.

    Example: mfpo settings train
    """
    users = {known: user for known, (user, _, _) in _CLASSES.items()}
    users |= {known: command.format(known) for command, registry in _FUNCTIONS.items() for known in registry}
    if name is None:
        _show(("name", "settings of"), users.items())
        return
    if name in OBJECTIVES:
        raise SettingError(f"{name} is a method; its settings are among those of `mfpo settings train`")
    if name not in users:
        raise SettingError(f"there are no settings for {brief(name)}; {nearest(name, users)}")
    if name in _CLASSES:
        if name == "build":
            import mfpo.picturebook.edits  # noqa: F401 - registers the corruptions that only drawings can have
        _, module, class_name = _CLASSES[name]
        cls = getattr(import_module(module), class_name)
        _show_fields(field for field in fields(cls) if field.metadata["help"])
        _show_passed_on(cls)
        for choice, added in cls.added().items() if issubclass(cls, ChosenSettings) else ():
            if added:
                console.print(f"with {cls.choice}={choice} also")
                _show_fields(added)
        for check in CHECKERS if name == "pairs" else ():  # whose names other commands use too
            if added := fields(with_options(Settings, CHECKERS[check])):
                console.print(f"with --check {check} also")
                _show_fields(added)
        return
    function = next(registry[name] for registry in _FUNCTIONS.values() if name in registry)
    shown = fields(with_options(Settings, function))
    if shown:
        _show_fields(shown)
    else:
        console.print(f"{name} has no settings of its own")
    if "judge" in inspect.signature(function).parameters:
        console.print("and its judge's: `mfpo settings judge`")


def _show_passed_on(cls: type[Any]) -> None:
    """The settings that are another library's, which explains them, and those of its that are refused."""
    names = sorted(field.name for field in fields(cls) if not field.metadata["help"])
    if names:
        console.print(f"and these fields of transformers' TrainingArguments, passed on: {', '.join(names)}")
        reasons: dict[str, list[str]] = {}
        for name, reason in cls.refused.items():
            reasons.setdefault(reason, []).append(name)
        console.print("and not these:")
        _show(("fields", "why not"), ((", ".join(names), reason) for reason, names in reasons.items()))


def _show_fields(shown: Iterable["Field[Any]"]) -> None:
    rows = []
    for field in shown:
        default = "" if field.default is MISSING else "null" if field.default is None else str(field.default)
        rows.append((field.name, default, field.metadata["help"]))
    _show(("setting", "default", "what it does"), rows)


def _show(head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    shown = Table(*head)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
