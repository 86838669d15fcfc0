"""The settings of a judge."""

from dataclasses import dataclass

from mfpo.answer.openai_client import OPENAI, check_endpoint
from mfpo.errors import SettingError
from mfpo.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class JudgeSettings(Settings):
    """The judge model, its endpoint, and retries."""

    model: str = setting("", "the endpoint's name for the judge, the same as --judge; required")
    endpoint: str = setting(OPENAI, "URL of an OpenAI-compatible API, usually ending in /v1")
    concurrency: int = setting(8, "simultaneous requests to the judge", least=1)
    timeout: float = setting(120.0, "seconds without a byte before a request is repeated", above=0)
    retries: int = setting(6, "retries after 429, 5xx, a timeout or a dropped connection, with growing pauses", least=0)
    attempts: int = setting(3, "requests before a verdict counts as unreadable", least=1)
    max_tokens: int | None = setting(
        None, "maximum tokens per verdict; null: the benchmark's default; reasoning models need more", least=1
    )
    send_temperature: bool = setting(True, "send the benchmark's temperature; some reasoning models refuse any")
    prompt_price: float | None = setting(None, "price of a million prompt tokens")
    completion_price: float | None = setting(None, "price of a million completion tokens")

    def faults(self) -> list[str]:
        if not self.model:
            return ["no judge is named; give --judge, or model, the endpoint's name for it"]
        try:
            check_endpoint(self.endpoint)
        except SettingError as error:
            return [str(error)]
        return []
