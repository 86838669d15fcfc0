"""The settings of `mfpo rank`."""

from dataclasses import dataclass
from typing import Literal

from mfpo.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class RankSettings(Settings):
    """What `mfpo rank` can be told."""

    entropy: Literal["token", "predictive", "semantic"] = setting(
        "token", "of the chosen answer's tokens (the paper's), over the vocabulary, or of the meanings of own answers"
    )
    levels: int = setting(3, "equal parts to cut the records into; 3 is the paper's: easy, medium, hard", least=1)
    samples: int = setting(10, "semantic: answers drawn a record; 10 as Farquhar et al.", least=2)
    temperature: float = setting(1.0, "semantic: of the draws; 1 as Farquhar et al.", above=0)
    max_new_tokens: int = setting(256, "semantic: tokens of a drawn answer at most", least=1)
    nli_model: str | None = setting(
        None, "semantic: model that says which answers mean the same; null: by objects named"
    )
    batch_size: int = setting(
        16, "records in one forward pass; changes nothing but speed and memory; semantic: one", least=1
    )
    max_length: int = setting(2048, "tokens of prompt, images and answer; an answer's end beyond it is cut", least=1)

    def faults(self) -> list[str]:
        if self.nli_model is not None and self.entropy != "semantic":
            return [f"nli_model compares sampled answers, but entropy is {self.entropy}; set entropy=semantic too"]
        return []
