"""The settings of `mfpo probe`."""

from dataclasses import dataclass
from typing import Literal

from mfpo.build.settings import STEPS, Schedule
from mfpo.settings import Settings, setting

At = Literal["word", "before"]

_LIMIT = "number of records, evenly spaced; null for all"


@dataclass(frozen=True, kw_only=True)
class DistortionSettings(Settings):
    """The settings of `mfpo probe distortion`."""

    steps: tuple[int, ...] = setting((0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999), "noise steps, 0 to 999")
    schedule: Schedule = setting("sigmoid", "noise schedule: sigmoid, linear or cosine")
    seed: int = setting(0, "seed of the noise, one draw per record", least=0)
    max_new_tokens: int = setting(128, "maximum tokens per answer", least=1)
    batch_size: int = setting(32, "records per batch", least=1)
    max_length: int = setting(2048, "tokens of prompt and answer; records with more are set aside", least=1)
    limit: int | None = setting(None, _LIMIT, least=1)

    def faults(self) -> list[str]:
        faults = [f"step {step} must be from 0 to {STEPS - 1}" for step in self.steps if not 0 <= step < STEPS]
        if not self.steps or len(set(self.steps)) < len(self.steps):
            faults.append("steps must be different numbers, such as 0,500,999")
        return faults


@dataclass(frozen=True, kw_only=True)
class AttentionSettings(Settings):
    """The settings of `mfpo probe attention`."""

    at: At = setting("word", "attention of the word's tokens (word), or of those that predict them (before)")
    limit: int | None = setting(None, _LIMIT, least=1)
    drawn: int = setting(6, "records to draw on the page", least=0)
    max_length: int = setting(2048, "tokens of prompt and answer; records with more are set aside", least=1)


@dataclass(frozen=True, kw_only=True)
class RewardsSettings(Settings):
    """The settings of `mfpo probe rewards`."""

    window: int = setting(5, "lines of metrics.jsonl to average for smoothing", least=1)
