"""How the rejected image m' comes from the original m: the paper's way and others to compare with, one file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mfpo.registry import Registry
from mfpo.settings import options_of

if TYPE_CHECKING:
    import numpy as np

    from mfpo.build.noise import Pixels
    from mfpo.build.settings import BuildSettings
    from mfpo.masks import Mask

    Function = TypeVar("Function", bound=Callable[..., tuple[Pixels, float]])


@dataclass(frozen=True)
class Corruption:
    """A function from an image to its rejected image, and whether it destroys regions that have to be found first."""

    function: Callable[..., tuple[Pixels, float]]
    needs_regions: bool

    def __post_init__(self) -> None:
        # By its module the registry knows the package's own corruptions.
        object.__setattr__(self, "__module__", self.function.__module__)

    def __call__(
        self, pixels: Pixels, mask: Mask, rng: np.random.Generator, settings: BuildSettings
    ) -> tuple[Pixels, float]:
        """The rejected image of `pixels`, (height, width, 3), and the share of them that is destroyed, from 0 to 1."""
        return self.function(pixels, mask, rng, settings, **options_of(settings, self.function))


# Those of the package.
NAMES = ("region", "global", "random", "crop", "blur", "black")
CORRUPTIONS: Registry[Corruption] = Registry("corruption", "mfpo.build.corruptions", NAMES)


def corruption(name: str, *, needs_regions: bool = False) -> Callable[[Function], Function]:
    """Register a pure function of `pixels`, (height, width, 3) of 0 to 255, `mask`, `rng` and `settings`.

    It returns the rejected image and the share of the original that it destroys. `mask`, (height, width), is the union
    of the regions, without any unless it `needs_regions`. Keyword arguments that carry `mfpo.settings.about` are
    settings.
    """

    def add(function: Function) -> Function:
        CORRUPTIONS.add(name, Corruption(function, needs_regions))
        return function

    return add
