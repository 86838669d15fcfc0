"""The settings of `mfpo rank`."""

import math
from dataclasses import dataclass
from typing import Literal

from mfpo.errors import SettingError
from mfpo.settings import setting


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """What `mfpo rank` can be told. Raises SettingError with all that is wrong."""

    entropy: Literal["token", "predictive", "semantic"] = setting(
        "token", "of the chosen answer's tokens (the paper's), over the vocabulary, or of the meanings of own answers"
    )
    levels: int = setting(3, "equal parts to cut the records into; 3 is the paper's: easy, medium, hard")
    samples: int = setting(10, "semantic: answers drawn a record; 10 as Farquhar et al.")
    temperature: float = setting(1.0, "semantic: of the draws; 1 as Farquhar et al.")
    max_new_tokens: int = setting(256, "semantic: tokens of a drawn answer at most")
    nli_model: str | None = setting(
        None, "semantic: model that says which answers mean the same; null: by objects named"
    )
    batch_size: int = setting(16, "records in one forward pass; changes nothing but speed and memory; semantic: one")
    max_length: int = setting(2048, "tokens of prompt, images and answer; an answer's end beyond it is cut")

    def __post_init__(self) -> None:
        faults = []
        least = {"levels": 1, "samples": 2, "max_new_tokens": 1, "batch_size": 1, "max_length": 1}
        for name, number in least.items():
            if getattr(self, name) < number:
                faults.append(f"{name} is {getattr(self, name)}, but must be at least {number}")
        if not 0 < self.temperature < math.inf:
            faults.append(f"temperature is {self.temperature}, but must be above 0")
        if self.nli_model is not None and self.entropy != "semantic":
            faults.append(
                f"nli_model compares sampled answers, but entropy is {self.entropy}; set entropy=semantic too"
            )
        if faults:
            raise SettingError("; ".join(faults))
