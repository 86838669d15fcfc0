"""Paper 3.1: where in an image a keyword's object is. One file a segmenter, all behind one protocol."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mfpo.build.settings import RegionSettings
from mfpo.class_names import class_of, plain_name
from mfpo.errors import MfpoError, RecordError, brief
from mfpo.masks import as_rle
from mfpo.objects import category_of, mentions
from mfpo.records import RLE, Keyword, Region, SourceRecord

# What else there is where the source brings no masks.
OTHER_CHOICES = (
    "coco=FILE (COCO instances JSON), grounded-sam, grounded-sam=DETECTOR,SAM, sam3, sam3=MODEL, clipseg, "
    "clipseg=MODEL or lisa=MODEL (folders or names on the hub), "
    "or --corruption global, random, crop, blur or black, which need none"
)
CHOICES = f"give --regions dataset (masks that the source brings), {OTHER_CHOICES}"


@dataclass(frozen=True)
class Search:
    """Image number `number` (from 0) of a record, its `pixels` (height, width, 3), and what is looked for in it."""

    record: SourceRecord
    number: int
    pixels: NDArray[np.uint8]
    keywords: Sequence[Keyword]


class Segmenter(Protocol):
    def __call__(self, searches: Sequence[Search]) -> list[list[Region] | RecordError]:
        """For each search the regions of the keywords that are seen, best keyword first, or why it is impossible.

        `Region.score` says how sure the segmenter is, from 0 to 1. Raises MfpoError when no image can be searched.
        """
        ...


def open_segmenter(choice: str, settings: RegionSettings = RegionSettings()) -> Segmenter:
    """The segmenter that `--regions CHOICE` names; docs/regions.md lists them.

    Raises MfpoError for any other choice, for a file that holds no COCO instances, and for a model that is missing,
    of another kind, or not in safetensors.
    """
    name, equals, where = choice.partition("=")
    if choice == "dataset":
        from mfpo.build.regions.dataset import DatasetRegions

        return DatasetRegions(settings)
    if name == "coco" and where:
        from mfpo.build.regions.coco import CocoRegions

        return CocoRegions(Path(where), settings)
    if bool(equals) == bool(where):
        if name == "grounded-sam":
            from mfpo.build.regions.grounded_sam import DEFAULT, GroundedSam

            return GroundedSam(where or DEFAULT, settings)
        if name == "sam3":
            from mfpo.build.regions.sam3 import DEFAULT, Sam3Regions

            return Sam3Regions(where or DEFAULT, settings)
        if name == "clipseg":
            from mfpo.build.regions.clipseg import DEFAULT, ClipSeg

            return ClipSeg(where or DEFAULT, settings)
        if name == "lisa" and where:
            from mfpo.build.regions.lisa import LisaRegions

            return LisaRegions(where, settings)
    raise MfpoError(f"no regions are named {brief(choice)}; {CHOICES}")


def is_region(mask: RLE, settings: RegionSettings) -> bool:
    """Whether `mask` covers neither too little nor too much of its image."""
    share = coco_mask.area(mask) / (mask["size"][0] * mask["size"][1])
    return bool(settings.smallest_region <= share <= settings.largest_region)


def match_regions(
    search: Search, objects: Iterable[tuple[str, RLE]], settings: RegionSettings = RegionSettings()
) -> list[Region]:
    """Give each keyword the union of the masks that it names; `objects` are the (name, mask) of the search's image.

    Raises RecordError when masks are of different sizes.
    """
    named = list(objects)
    regions = []
    for keyword in search.keywords:
        masks = [mask for name, mask in named if is_named(keyword["text"], name)]
        if not masks:
            continue
        sizes = {tuple(mask["size"]) for mask in masks}
        if len(sizes) > 1:
            raise RecordError(f"the masks of {brief(keyword['text'])} are of different sizes: {sorted(sizes)}")
        union = as_rle(coco_mask.merge(masks))
        if is_region(union, settings):
            regions.append(Region(keyword=keyword["text"], score=1.0, mask=union, image=search.number))
    return regions


def is_named(keyword: str, name: str) -> bool:
    """Whether the phrase `keyword` names the object `name`: the same COCO class, or the same last words for others.

    >>> is_named("two sleepy puppies", "dog"), is_named("tall trees", "tree"), is_named("carpet", "car")
    (True, True, False)
    >>> is_named("hot dogs", "hot_dog"), is_named("a dog", "dog_collar"), is_named("a traffic light", "light")
    (True, False, False)
    """
    given = class_of(name)
    if given:
        return category_of(keyword) == given
    # The plural's s is all that can differ: other endings would need a dictionary.
    phrase, last_words = f" {keyword}".lower().removesuffix("s"), f" {plain_name(name)}".removesuffix("s")
    start = len(phrase) - len(last_words)
    # A traffic light is no light: the name may not be the end of a COCO object's.
    return phrase.endswith(last_words) and all(mention.start >= start for mention in mentions(keyword))
