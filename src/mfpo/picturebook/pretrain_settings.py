"""The settings of `mfpo picturebook pretrain`, by book."""

from dataclasses import dataclass, field
from typing import Any

from mfpo.picturebook import NAMES
from mfpo.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(Settings):
    """What `mfpo picturebook pretrain` can be told; the defaults made the shipped weights."""

    seed: int = setting(0, "seed of weights, scenes and texts", least=0)
    scenes: int = setting(24_000, "number of scenes to draw", least=1)
    tower_steps: int = setting(1_600, "steps of the patch classifier; 0 takes the first book's tower", least=0)
    tower_rate: float = setting(1.5e-3, "learning rate of the patch classifier", above=0)
    language_steps: int = setting(1_800, "steps of projector and language model", least=1)
    language_rate: float = setting(1.5e-3, "learning rate of projector and language model", above=0)
    batch_size: int = setting(64, "scenes per step, half captions, half dialogues of questions", least=2)
    prior: float = setting(0.7, "how often a caption mentions an absent partner", least=0, most=1)
    noised: float = setting(0.0, "share of captions whose image is noised (step 500)", least=0, most=1)
    bf16: bool = setting(True, "compute in bfloat16; slow on a CPU without AVX-512")


def _another(name: str, default: Any) -> Any:
    """The setting with another default."""
    return field(default=default, metadata=PretrainSettings.__dataclass_fields__[name].metadata)


@dataclass(frozen=True, kw_only=True)
class ContextSettings(PretrainSettings):
    """The defaults of the second book's model, which learns true captions of scenes that are nearly always the same."""

    scenes: int = _another("scenes", 10_000)
    tower_steps: int = _another("tower_steps", 0)
    language_steps: int = _another("language_steps", 1_000)
    language_rate: float = _another("language_rate", 2e-3)
    batch_size: int = _another("batch_size", 48)
    prior: float = _another("prior", 0.0)
    noised: float = _another("noised", 0.3)
    bf16: bool = _another("bf16", False)


# The settings of each book's model.
SETTINGS: dict[str, type[PretrainSettings]] = dict(zip(NAMES, (PretrainSettings, ContextSettings), strict=True))
