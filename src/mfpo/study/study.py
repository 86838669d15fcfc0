"""Trials, each trained and scored once: tables share them, and a killed study resumes."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from rich.console import Console

from mfpo.answer.decoders import DECODERS
from mfpo.answer.settings import AnswerSettings
from mfpo.build.settings import BuildSettings
from mfpo.errors import SettingError
from mfpo.files import read_rows
from mfpo.folders import versions, write_json, write_text
from mfpo.rank.settings import RankSettings
from mfpo.settings import from_mapping, options_of, read_values
from mfpo.sources import Source
from mfpo.study.statistics import Array, Scores
from mfpo.study.trials import Data, PairSource, Trial, changes
from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings


class NotOnScale(SettingError):
    """The scale lacks what an experiment asks for, so that `mfpo reproduce all` leaves it out."""


# As many as the authors looked at for Section 4.3.
CHECKED_PAIRS = 100


@dataclass(frozen=True)
class Checked:
    """Pairs whose keywords and regions are checked against COCO `instances` of their images.

    `segmenters` are those to check by row, as `mfpo build --regions` names them.
    """

    pairs: Source
    instances: Path
    segmenters: Mapping[str, str]


class Scale(Protocol):
    """Where data, base model and scores come from: the picture book, or a real model with real benchmarks.

    `stands_for` is the row of Table 1 that the base has. `pairs` is how many pairs there are to train on, `sources` are
    the kinds of pairs that there are, `others` the trials of models that are only asked, by row. `figures` are the
    columns of the tables by key, `question_types` those of Table 2. `trained_on` is what trainings depend on beside
    trial and seed, `checked_on` what Section 4.3's checks do, `context` what scores do; `scored_on` says in words what
    these are of.
    """

    stands_for: str
    pairs: int
    sources: Collection[PairSource]
    others: Mapping[str, Trial]
    figures: Mapping[str, str]
    question_types: Mapping[str, str]
    scored_on: str
    trained_on: Mapping[str, Any]
    checked_on: Mapping[str, Any]
    context: Mapping[str, Any]

    @property
    def base(self) -> Path:
        """The folder of the base model."""
        ...

    def rate(self, method: str) -> float:
        """The learning rate of a method, where a trial has none of its own."""
        ...

    def train_settings(self) -> list[str]:
        """What else trainings are told, as KEY=VALUE."""
        ...

    def data(self, data: Data, seed: int) -> Path:
        """The folder of the ranked pairs."""
        ...

    def score(self, model: Path, trial: Trial, seed: int) -> Mapping[str, Array]:
        """The counts of each figure, (scenes, 2)."""
        ...

    def scored_pairs(self, seed: int) -> Path:
        """The folder of pairs that nobody trained on."""
        ...

    def checked(self, seed: int) -> Checked:
        """The pairs that Section 4.3's checks look at, and what they are checked with."""
        ...

    def is_seen(self, seed: int) -> list[bool]:
        """Whether each scored scene has one of the themes that `Data.themes` keeps."""
        ...


class Study:
    """The trials of `scale` under `out`, for each of `seeds`: `runs/` has the trainings, `scores/` what came out.

    `versions` are those of the packages that made the scores which have been read.
    """

    def __init__(self, out: Path, scale: Scale, seeds: Sequence[int], console: Console) -> None:
        self.out, self.scale, self.seeds, self.console = out, scale, seeds, console
        self.versions: dict[str, set[str]] = {}

    def on(self, scale: Scale, seeds: Sequence[int] | None = None) -> "Study":
        """The same study on another scale, with its own seeds unless others are given."""
        other = copy(self)
        other.scale, other.seeds = scale, seeds or self.seeds
        return other

    def run(self, trial: Trial, seed: int) -> Path:
        """The run folder of a trial, trained now unless it has been before."""
        trial = replace(self.with_rate(trial), stage=None, decode="greedy")
        run = self.out / "runs" / f"{trial.key(self.scale.trained_on)}-{seed}"
        if (trial.data.pairs or 0) > self.scale.pairs:
            raise SettingError(f"there are {self.scale.pairs} pairs, fewer than {trial.data.pairs}; raise --pairs")
        settings = self.settings(trial, seed)
        if not is_trained(run, settings):
            train(self.scale.data(trial.data, seed), self.scale.base, run, settings)
        return run

    def settings(self, trial: Trial, seed: int) -> TrainSettings:
        """What a trial with its rate is trained with."""
        overrides = {"method": trial.method, "seed": seed, "keep_stages": True, **dict(trial.settings)}
        values, where = read_values(None, self.scale.train_settings())
        # Either may have the name that a setting had before.
        values = TrainSettings.renamed(values) | TrainSettings.renamed(overrides)
        return from_mapping(TrainSettings, values, where).resolved()

    def with_rate(self, trial: Trial) -> Trial:
        """The trial with the learning rate that it is trained at."""
        if trial.method is None or "learning_rate" in dict(trial.settings):
            return trial
        return trial.changed(learning_rate=self.scale.rate(trial.method))

    def model(self, trial: Trial, seed: int) -> Path:
        """The model of a trial."""
        if trial.method is None:
            return self.scale.base
        run = self.run(trial, seed)
        return next((run / "stages").glob(f"*-{trial.stage}")) if trial.stage else run / "model"

    def scores(self, trial: Trial, model: Callable[[int], Path] | None = None) -> list[Scores]:
        """The scores of a trial, seed by seed; `model` gives that of a seed, where the trial alone does not tell it."""
        return [self._scores(self.with_rate(trial), seed, model or partial(self.model, trial)) for seed in self.seeds]

    def _scores(self, trial: Trial, seed: int, model: Callable[[int], Path]) -> Scores:
        path = self.out / "scores" / f"{trial.key(self.scale.context)}-{seed}.json"
        now = self._all_settings(trial, seed)
        if not path.exists():
            self.console.print(f"seed {seed}: {describe(trial)}", style="dim")
            counts = self.scale.score(model(seed), trial, seed)
            short = {name: [[_short(part), _short(whole)] for part, whole in pairs] for name, pairs in counts.items()}
            made_by = {"trial": asdict(trial), "seed": seed, "versions": versions(), "settings": now}
            write_text(path, json.dumps(made_by | {"counts": short}, separators=(",", ":")) + "\n", is_shared=True)
        scored = json.loads(path.read_text(encoding="utf-8"))
        _check_settings(path, scored["settings"], now)
        for name, version in scored["versions"].items():
            self.versions.setdefault(name, set()).add(version)
        return {name: np.array(pairs, dtype=np.float64) for name, pairs in scored["counts"].items()}

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, as JSON keeps it; made unless OUT/probes has it."""
        path = self.out / "probes" / f"{name}.json"
        if not path.exists():
            write_json(path, make(), is_shared=True)
        return json.loads(path.read_text(encoding="utf-8"))

    def curve(self, trial: Trial) -> list[dict[str, Any]]:
        """The lines of metrics of the first seed's training."""
        seed = self.seeds[0]
        name = f"curve-{self.with_rate(trial).key(self.scale.trained_on)}-{seed}"
        rows: list[dict[str, Any]] = self.kept(
            name, lambda: [row for _, row in read_rows(self.run(trial, seed) / "metrics.jsonl")]
        )
        return rows

    def _all_settings(self, trial: Trial, seed: int) -> dict[str, Any]:
        """The settings of a score's training, and the defaults of the other stages before it, as STAGE.NAME."""
        decoder = options_of(AnswerSettings(decode=trial.decode), DECODERS[trial.decode])
        stages = {"build": asdict(BuildSettings()), "rank": asdict(RankSettings()), "answer": decoder}
        if trial.method:
            stages["train"] = self.settings(trial, seed).shown()
        return {f"{stage}.{name}": value for stage, settings in stages.items() for name, value in settings.items()}


def is_trained(run: Path, settings: TrainSettings) -> bool:
    """Whether the run folder is there; raises SettingError when it was trained with other settings."""
    if run.exists():
        _check_settings(run, yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")), settings.shown())
    return run.exists()


def _check_settings(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Names stand for what a trial changes, not for defaults; raises SettingError when these were others before."""
    # Null was the weight of a term that a method does not weigh itself, before each term had one.
    before = {name: 1.0 if value is None and name.endswith("_weight") else value for name, value in before.items()}
    changed = [
        f"{name} was {before[name]} and is {now[name]}" for name in now if before.get(name, now[name]) != now[name]
    ]
    if changed:
        raise SettingError(f"{path} has other defaults: {'; '.join(changed)}; remove it, or give another --out")


def _short(value: float) -> float | int:
    """A count without its zeros, a log-probability with as many places as it is good for."""
    return int(value) if value == int(value) else round(float(value), 4)


def describe(trial: Trial) -> str:
    """A trial in a line."""
    if trial.method is None:
        return str(dict(trial.other).get("name", f"base, {trial.decode}"))
    changed = changes(trial.data) | dict(trial.settings) | dict(trial.other)
    return ", ".join([trial.method, *(f"{name}={value}" for name, value in changed.items())]) + (
        f", after {trial.stage}" if trial.stage else ""
    )
