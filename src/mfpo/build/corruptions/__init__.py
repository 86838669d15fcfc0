"""How the rejected image m' comes about: the paper's way and others to compare with, one file each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mfpo.registry import Registry
from mfpo.settings import options_of

if TYPE_CHECKING:
    import numpy as np

    from mfpo.build.noise import Pixels
    from mfpo.build.settings import BuildSettings
    from mfpo.masks import Mask
    from mfpo.records import EncodedImage, Region, SourceRecord

    Function = TypeVar("Function", bound=Callable[..., Any])


class Edit(NamedTuple):
    """What the corruption of a whole record makes: m', the right answer to it (y') where it is known, and the regions.

    `area` is the mean share of the pixels that differ, from 0 to 1.
    """

    rejected_images: Sequence[Pixels | EncodedImage]
    counter: str | None
    regions: list[Region]
    area: float


@dataclass(frozen=True)
class Corruption:
    """A function from an image, or with `edits_records` from a record, to the rejected ones.

    `needs_regions` says that it destroys regions that have to be found first.
    """

    function: Callable[..., Any]
    needs_regions: bool
    edits_records: bool

    def __post_init__(self) -> None:
        # By its module the registry knows the package's own corruptions.
        object.__setattr__(self, "__module__", self.function.__module__)

    def __call__(
        self, pixels: Pixels, mask: Mask, rng: np.random.Generator, settings: BuildSettings
    ) -> tuple[Pixels, float]:
        """The rejected image of `pixels`, (height, width, 3), and the share of them that is destroyed, from 0 to 1."""
        rejected: tuple[Pixels, float] = self.function(
            pixels, mask, rng, settings, **options_of(settings, self.function)
        )
        return rejected

    def edit(
        self, record: SourceRecord, regions: list[Region], rng: np.random.Generator, settings: BuildSettings
    ) -> Edit:
        """The edit of a record by a corruption that `edits_records`. Raises RecordError when it cannot be edited."""
        edit: Edit = self.function(record, regions, rng, settings, **options_of(settings, self.function))
        return edit


# Those of the package.
NAMES = ("region", "global", "random", "crop", "blur", "black", "inpaint", "given")
CORRUPTIONS: Registry[Corruption] = Registry("corruption", "mfpo.build.corruptions", NAMES)


def corruption(
    name: str, *, needs_regions: bool = False, edits_records: bool = False
) -> Callable[[Function], Function]:
    """Register a pure function of `pixels`, (height, width, 3) of 0 to 255, `mask`, `rng` and `settings`.

    It returns the rejected image and the share of the original that it destroys. `mask`, (height, width), is the union
    of the regions, without any unless it `needs_regions`. Keyword arguments that carry `mfpo.settings.about` are
    settings.

    With `edits_records` it is a function of the source's record, its `regions`, `rng` and `settings` that returns an
    `Edit`: what it takes to know the right answer to the rejected image.
    """

    def add(function: Function) -> Function:
        CORRUPTIONS.add(name, Corruption(function, needs_regions, edits_records))
        return function

    return add
