"""Modality-Fair Preference Optimization (Jiang et al., IJCAI 2025) for vision-language models.

The names below are imported when they are asked for: `import mfpo` itself takes milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfpo.build.pipeline import build as build
    from mfpo.build.regions import open_segmenter as open_segmenter
    from mfpo.build.settings import BuildSettings as BuildSettings
    from mfpo.train.run import train as train

__version__ = "0.1.0"

# Name -> the module that has it.
_PLACES = {
    "BuildSettings": "mfpo.build.settings",
    "build": "mfpo.build.pipeline",
    "open_segmenter": "mfpo.build.regions",
    "train": "mfpo.train.run",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'mfpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
