"""What a number in the study is measured on: preference data, a method with its settings, and a decoder."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from mfpo.train.objectives import OBJECTIVES

PairSource = Literal["corrected", "ranked", "human"]
Themes = Literal["all", "some"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """Preference pairs and the rejected images that are made for them.

    `pairs` is their number, None for all that the scale has; `source` is where they come from: `corrected` answers, as
    RLHF-V's, two answers `ranked`, as Silkie's, or two compared by people (`human`), as LLaVA-RLHF's. `themes` are
    those of the scenes: all, or only some, so that the others are unseen. Each pair comes `noises` times, with its
    image noised anew; `differing` is that of the build, `edit` and `edits` are those of counterfactuals. With
    `counterfactuals` these are pairs too: m' with y' as the chosen answer and y_w as the rejected one.
    A default must never change: what is kept is known by what differs from the defaults.
    """

    pairs: int | None = None
    source: PairSource = "corrected"
    themes: Themes = "all"
    corruption: str = "region"
    noise_step: int = 500
    schedule: str = "sigmoid"
    differing: bool = False
    noises: int = 1
    edit: str = "any"
    edits: int = 1
    counterfactuals: bool = False

    @property
    def records_a_pair(self) -> int:
        """How many records of training each pair becomes, if none is set aside."""
        return self.noises * (2 if self.counterfactuals else 1)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A model to score: the base, or what `method` made of it with `settings` on `data`; `decode` is how it answers.

    `stage` is the stage of the training after which it is scored; None for the last one. `other` says how answers of a
    model that is only asked are come by; empty for the base and what is made of it.
    """

    method: str | None = None
    data: Data = field(default_factory=Data)
    settings: tuple[tuple[str, Any], ...] = ()
    stage: str | None = None
    decode: str = "greedy"
    other: tuple[tuple[str, Any], ...] = ()

    def changed(self, **settings: Any) -> "Trial":
        """The trial with some settings changed."""
        return replace(self, settings=tuple(sorted((dict(self.settings) | settings).items())))

    def key(self, *context: object) -> str:
        """A name for files, which stands for the trial and the `context` it is run in."""
        text = json.dumps([changes(self) | {"data": changes(self.data)}, context], sort_keys=True, default=str)
        return f"{self.method or 'base'}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def changes(made: Data | Trial) -> dict[str, Any]:
    """The fields that are not at their defaults: what things are known by, so that a new field renames nothing."""
    default = asdict(type(made)())
    return {name: value for name, value in asdict(made).items() if value != default[name]}


def trained(method: str, data: Data | None = None, *, stage: str | None = None, **settings: Any) -> Trial:
    """A trial of `method` on `data` or on what the method is made for; without a learning rate it has the scale's."""
    data = data or Data(corruption=OBJECTIVES[method].corruption or "region")
    return Trial(method=method, data=data, stage=stage).changed(**settings)
