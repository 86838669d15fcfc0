"""The settings of `mfpo demo`, in a module of their own so that a mistake is reported without seconds of imports."""

from dataclasses import dataclass

from mfpo.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    seed: int = setting(0, "seed of pairs, held-out scenes and training", least=0, most=99)
    pairs: int = setting(600, "preference pairs to train on", least=3)
    scenes: int = setting(500, "held-out scenes to score on", least=1)
    dependence_pairs: int = setting(150, "held-out pairs to measure image dependence on", least=1)
