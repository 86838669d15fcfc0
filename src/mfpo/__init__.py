"""Modality-Fair Preference Optimization (Jiang et al., IJCAI 2025) for vision-language models.

Public names are imported on first use: `import mfpo` itself takes milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfpo.answer.decoders import decoder as decoder
    from mfpo.answer.judge_settings import JudgeSettings as JudgeSettings
    from mfpo.answer.run import answer as answer
    from mfpo.answer.settings import AnswerSettings as AnswerSettings
    from mfpo.build.corruptions import corruption as corruption
    from mfpo.build.pipeline import build as build
    from mfpo.build.regions import open_segmenter as open_segmenter
    from mfpo.build.regions import segmenter as segmenter
    from mfpo.build.settings import BuildSettings as BuildSettings
    from mfpo.dataset import read_dataset as read_dataset
    from mfpo.errors import MfpoError as MfpoError
    from mfpo.evaluate.benchmark import Result as Result
    from mfpo.evaluate.benchmark import benchmark as benchmark
    from mfpo.evaluate.benchmark import score as score
    from mfpo.evaluate.compare import compare as compare
    from mfpo.models import load_model as load_model
    from mfpo.pairs.run import pairs as pairs
    from mfpo.pairs.settings import PairsSettings as PairsSettings
    from mfpo.processors import load_processor as load_processor
    from mfpo.rank.run import rank as rank
    from mfpo.rank.settings import RankSettings as RankSettings
    from mfpo.settings import about as about
    from mfpo.sources import open_source as open_source
    from mfpo.sources import source as source
    from mfpo.train.objectives import objective as objective
    from mfpo.train.run import train as train
    from mfpo.train.settings import TrainSettings as TrainSettings
    from mfpo.train.trainer import PreferenceTrainer as PreferenceTrainer

__version__ = "0.1.0"

# What each module has, as above; the packages are called like their commands.
_PLACES = {
    "mfpo": ("answer", "build", "pairs", "rank", "train"),
    "mfpo.answer.decoders": ("decoder",),
    "mfpo.answer.settings": ("AnswerSettings",),
    "mfpo.build.corruptions": ("corruption",),
    "mfpo.build.regions": ("open_segmenter", "segmenter"),
    "mfpo.build.settings": ("BuildSettings",),
    "mfpo.errors": ("MfpoError",),
    "mfpo.evaluate.benchmark": ("Result", "benchmark", "score"),
    "mfpo.evaluate.compare": ("compare",),
    "mfpo.answer.judge_settings": ("JudgeSettings",),
    "mfpo.models": ("load_model",),
    "mfpo.processors": ("load_processor",),
    "mfpo.pairs.settings": ("PairsSettings",),
    "mfpo.rank.settings": ("RankSettings",),
    "mfpo.dataset": ("read_dataset",),
    "mfpo.settings": ("about",),
    "mfpo.sources": ("open_source", "source"),
    "mfpo.train.objectives": ("objective",),
    "mfpo.train.settings": ("TrainSettings",),
    "mfpo.train.trainer": ("PreferenceTrainer",),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'mfpo' has no attribute {name!r}")
    return import_module(f"mfpo.{name}") if module == "mfpo" else getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
