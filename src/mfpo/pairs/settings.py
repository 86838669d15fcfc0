"""The settings of `mfpo pairs`; a pairing and a checker add their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mfpo.pairs.pair import PAIRINGS
from mfpo.settings import ChosenSettings, setting


@dataclass(frozen=True, kw_only=True)
class PairsSettings(ChosenSettings):
    """Settings of `mfpo pairs`: the general ones below, and the pairing's."""

    choice = "pairing"
    known = PAIRINGS

    pairing: str = setting("ranked", "ranked: the best answer against the worst; corrected: the worst one put right")
    samples: int = setting(8, "answers sampled per question, besides the greedy one", least=1)
    temperature: float = setting(0.7, "sampling temperature", above=0)
    max_new_tokens: int = setting(512, "maximum tokens per answer; an answer cut there is in no pair", least=1)
    seed: int = setting(0, "seed of sampling and prompts, combined with each question's id", least=0)
    batch_size: int = setting(8, "questions whose answers a local model samples at once", least=1)
    shard_size: int = setting(64, "questions per shard; a killed run resumes after its last complete shard", least=1)
    concurrency: int = setting(8, "simultaneous requests to an endpoint", least=1)
    retries: int = setting(5, "retries after a temporary failure of an endpoint", least=0)
    timeout: float = setting(120.0, "seconds without a byte from an endpoint that count as such a failure", above=0)

    @classmethod
    def brought(cls, name: str) -> tuple[tuple[Callable[..., Any], ...], tuple[str, ...]]:
        """The function of a pairing."""
        return (PAIRINGS[name],), ()
