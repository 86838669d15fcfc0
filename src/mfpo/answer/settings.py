"""The settings of each way to decode."""

from dataclasses import dataclass
from typing import Any

from mfpo.build.settings import STEPS
from mfpo.errors import SettingError
from mfpo.settings import setting


@dataclass(frozen=True, kw_only=True)
class GreedySettings:
    """Greedy decoding has nothing to set."""


@dataclass(frozen=True, kw_only=True)
class VCDSettings:
    """Settings of `mfpo answer --decode vcd`, with the defaults of VCD's evaluation scripts."""

    cd_alpha: float = setting(1.0, "weight of the contrast; 0 is decoding without the noised image")
    cd_beta: float = setting(0.1, "a token is possible if it has this share of the likeliest one's probability")
    noise_step: int = setting(500, "diffusion step of the noised image, 0 to 999")
    sample: bool = setting(True, "sample at temperature 1 as VCD does; false takes the highest score, our extension")
    seed: int = setting(0, "seed of noise and sampling; each question has generators of its own")

    def __post_init__(self) -> None:
        if self.cd_alpha < 0:
            raise SettingError(f"cd_alpha is {self.cd_alpha}, but must not be negative")
        if not 0 <= self.cd_beta <= 1:
            raise SettingError(f"cd_beta is {self.cd_beta}, but must be from 0 to 1")
        if not 0 <= self.noise_step < STEPS:
            raise SettingError(f"noise_step is {self.noise_step}, but must be from 0 to {STEPS - 1}")
        if self.seed < 0:
            raise SettingError(f"seed is {self.seed}, but must not be negative")


@dataclass(frozen=True, kw_only=True)
class OPERASettings:
    """Settings of `mfpo answer --decode opera`, with the defaults of OPERA's README."""

    num_beams: int = setting(5, "beams")
    scale_factor: float = setting(50.0, "attention is multiplied by it before products are taken (sigma)")
    threshold: int = setting(15, "rollback when each beam found the same place more often than this (r)")
    num_attn_candidates: int = setting(
        5, "tokens that each beam may go on with; also rollbacks to a place (N_can, beta)"
    )
    penalty_weight: float = setting(1.0, "weight of the over-trust penalty (alpha)")

    def __post_init__(self) -> None:
        if self.num_beams < 2:
            raise SettingError(f"num_beams is {self.num_beams}, but must be at least 2")
        if self.scale_factor <= 0:
            raise SettingError(f"scale_factor is {self.scale_factor}, but must be above 0")
        if self.threshold < 1:
            raise SettingError(f"threshold is {self.threshold}, but must be at least 1")
        if self.num_attn_candidates < 1:
            raise SettingError(f"num_attn_candidates is {self.num_attn_candidates}, but must be at least 1")
        if self.penalty_weight < 0:
            raise SettingError(f"penalty_weight is {self.penalty_weight}, but must not be negative")


# What `mfpo answer --decode` chooses from.
DECODER_SETTINGS: dict[str, type[Any]] = {"greedy": GreedySettings, "vcd": VCDSettings, "opera": OPERASettings}
