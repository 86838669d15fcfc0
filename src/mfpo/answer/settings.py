"""The settings of `mfpo answer`; a decoder adds its own."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mfpo.answer.decoders import DECODERS
from mfpo.errors import SettingError, brief
from mfpo.settings import ChosenSettings, setting

# What each engine has a use for; `transformers` also for the settings of its decoder.
_USED = {
    "transformers": {"decode", "max_new_tokens", "batch_size"},
    "vllm": {"max_new_tokens"},
    "endpoint": {"max_new_tokens", "concurrency", "temperature", "retries", "timeout"},
}


@dataclass(frozen=True, kw_only=True)
class AnswerSettings(ChosenSettings):
    """Settings of `mfpo answer`: the general ones below, and the decoder's."""

    choice = "decode"
    known = DECODERS

    decode: str = setting("greedy", "decoder of --engine transformers: greedy, vcd or opera")
    max_new_tokens: int = setting(512, "maximum tokens per answer", least=1)
    batch_size: int = setting(32, "questions per batch of --engine transformers", least=1)
    concurrency: int = setting(8, "simultaneous requests to an endpoint", least=1)
    temperature: float | None = setting(0.0, "temperature sent to an endpoint; null sends none", least=0)
    retries: int = setting(5, "retries after a temporary failure of an endpoint", least=0)
    timeout: float = setting(
        120.0, "seconds without a byte from an endpoint before a request counts as failed", above=0
    )

    @classmethod
    def brought(cls, name: str) -> tuple[tuple[Callable[..., Any], ...], tuple[str, ...]]:
        """The function of a decoder."""
        return (DECODERS[name],), ()


def engine_of(engine: str | None, endpoint: str | None) -> str:
    """`transformers`, `vllm` or `endpoint`. Raises SettingError for an unknown engine, and for one and an endpoint."""
    if endpoint is not None and engine is not None:
        raise SettingError(f"--engine {engine} is for a local model, and --endpoint asks another machine; give one")
    chosen = "endpoint" if endpoint is not None else engine or "transformers"
    if chosen not in _USED or engine == "endpoint":
        raise SettingError(f"no engine is named {brief(chosen)}; give --engine transformers or vllm")
    return chosen


def choose_engine(settings: AnswerSettings, engine: str | None, endpoint: str | None, *, retry_failed: bool) -> str:
    """`transformers`, `vllm` or `endpoint`.

    Raises SettingError for an unknown engine, and for settings that the engine does not use.
    """
    chosen = engine_of(engine, endpoint)
    if retry_failed and endpoint is None:
        raise SettingError(
            "--retry-failed asks an endpoint again; a local model has no failed questions, so leave it out"
        )
    title = "--endpoint" if endpoint is not None else f"--engine {chosen}"
    unused = [
        f"{field.name} is {value}, but {title} has no use for it; leave it out"
        for field in dataclasses.fields(AnswerSettings)
        if field.name not in _USED[chosen] and (value := getattr(settings, field.name)) != field.default
    ]
    if unused:
        raise SettingError("; ".join(unused))
    return chosen
