"""The settings of `mfpo pairs`; a pairing and a checker add their own."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from mfpo.answer.settings import engine_of
from mfpo.errors import SettingError
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
    timeout: float = setting(
        120.0, "seconds without a byte from an endpoint before a request counts as failed", above=0
    )

    @classmethod
    def brought(cls, name: str) -> tuple[tuple[Callable[..., Any], ...], tuple[str, ...]]:
        """The function of a pairing."""
        return (PAIRINGS[name],), ()


def check_use(settings: PairsSettings, check: str, engine: str | None, endpoint: str | None) -> None:
    """Raises SettingError for settings that neither engine nor checker uses, and choices that do not go together."""
    is_local = engine_of(engine, endpoint) == "transformers"
    is_judged = check.startswith("judge=")
    if check == "judge" and not is_local:
        raise SettingError("the model judges itself only when transformers runs it; give --check judge=NAME")
    if getattr(settings, "rewrite", None) == "judge" and not is_judged:
        raise SettingError("rewrite=judge needs a judge that writes; give --check judge=NAME judge_endpoint=URL")
    unused = {} if is_local else {"batch_size": "only a local model of transformers"}
    if endpoint is None and not is_judged:
        unused |= dict.fromkeys(("concurrency", "retries", "timeout"), "only --endpoint or --check judge=NAME")
    if not is_judged:
        unused |= dict.fromkeys(("judge_endpoint", "attempts"), "only --check judge=NAME")
    faults = [
        f"{field.name} is {value}, but {unused[field.name]} has a use for it; leave it out"
        for field in fields(settings)
        if field.name in unused and (value := getattr(settings, field.name)) != field.default
    ]
    if faults:
        raise SettingError("; ".join(faults))
