"""Paper 3.1: where in an image a keyword's object is. One file per segmenter, all behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from mfpo.build.settings import RegionSettings
from mfpo.errors import MfpoError, RecordError, brief
from mfpo.registry import Registry
from mfpo.settings import options_of

if TYPE_CHECKING:
    from mfpo.build.noise import Pixels
    from mfpo.records import Keyword, Region, SourceRecord

    Opener = TypeVar("Opener", bound=Callable[..., "Segmenter"])

# Those of the package.
NAMES = ("dataset", "coco", "grounded-sam", "sam3", "clipseg", "lisa")
SEGMENTERS: Registry[Callable[..., Segmenter]] = Registry("segmenter", "mfpo.build.regions", NAMES)

# What else there is where the source brings no masks.
OTHER_CHOICES = (
    "coco=FILE (COCO instances JSON), grounded-sam, grounded-sam=DETECTOR,SAM, sam3, sam3=MODEL, clipseg, "
    "clipseg=MODEL or lisa=MODEL (folders or names on the hub), "
    "or corruption=global, random or crop, which need none"
)
CHOICES = f"give --regions dataset (masks from the source), {OTHER_CHOICES}"


@dataclass(frozen=True)
class Search:
    """Image number `number` (from 0) of a record, its `pixels` (height, width, 3), and the keywords to find in it."""

    record: SourceRecord
    number: int
    pixels: Pixels
    keywords: Sequence[Keyword]


class Segmenter(Protocol):
    """Finds regions. Its `provenance`, if it has one, tells it apart from others (`folders.provenance_of`)."""

    def __call__(self, searches: Sequence[Search]) -> list[list[Region] | RecordError]:
        """For each search, the regions of the keywords found, best keyword first, or the error.

        `Region.score` says how sure the segmenter is, from 0 to 1. Raises MfpoError when no image can be searched.
        """
        ...


def segmenter(name: str) -> Callable[[Opener], Opener]:
    """Register a function or class as `--regions NAME` or `--regions NAME=WHERE`.

    It is called with `where`, which is empty for NAME alone, and the settings, and returns a `Segmenter`. Keyword
    arguments annotated with `mfpo.settings.about` are settings.
    """

    def add(opener: Opener) -> Opener:
        SEGMENTERS.add(name, opener)
        return opener

    return add


def open_segmenter(choice: str, settings: RegionSettings = RegionSettings()) -> Segmenter:
    """The segmenter that `--regions CHOICE` names; docs/regions.md lists them.

    Raises MfpoError for any other choice, for a file that holds no COCO instances, and for a model that is missing,
    of another kind, or not in safetensors.
    """
    check_choice(choice)
    name, _, where = choice.partition("=")
    opener = SEGMENTERS[name]
    return opener(where, settings, **options_of(settings, opener))


def check_choice(choice: str) -> None:
    """Raises MfpoError when `--regions CHOICE` names no segmenter, before any is imported."""
    name, equals, where = choice.partition("=")
    if name not in SEGMENTERS:
        others = [other for other in SEGMENTERS if other not in NAMES]
        raise MfpoError(
            f"no regions are named {brief(choice)}; {CHOICES}" + (f", or {', '.join(others)}" if others else "")
        )
    if bool(equals) != bool(where) or (name in ("coco", "lisa") and not where):
        raise MfpoError(f"regions {brief(choice)} lacks the file or model; {CHOICES}")
    if name == "dataset" and where:
        raise MfpoError(f"regions {brief(choice)} takes nothing after dataset; {CHOICES}")
