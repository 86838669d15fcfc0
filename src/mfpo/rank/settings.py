"""The settings of `mfpo rank`."""

from dataclasses import dataclass
from typing import Literal

from mfpo.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class RankSettings(Settings):
    """Settings of `mfpo rank`."""

    entropy: Literal["token", "predictive", "semantic"] = setting(
        "token", "of the chosen answer's tokens (paper), over the vocabulary, or of sampled answers' meanings"
    )
    levels: int = setting(3, "number of equal parts; 3 as in the paper: easy, medium, hard", least=1)
    samples: int = setting(10, "semantic: answers sampled per record; 10 as in Farquhar et al.", least=2)
    temperature: float = setting(1.0, "semantic: sampling temperature; 1 as in Farquhar et al.", above=0)
    max_new_tokens: int = setting(256, "semantic: maximum tokens per sampled answer", least=1)
    nli_model: str | None = setting(
        None, "semantic: model that decides which answers mean the same; null: by the objects they name"
    )
    batch_size: int = setting(16, "records in one forward pass; affects only speed and memory; semantic: one", least=1)
    max_length: int = setting(2048, "maximum tokens of prompt, images and answer; truncates longer answers", least=1)

    def faults(self) -> list[str]:
        if self.nli_model is not None and self.entropy != "semantic":
            return [f"nli_model compares sampled answers, but entropy is {self.entropy}; set entropy=semantic too"]
        return []
