"""Paper 3.1: where in an image a keyword's object is. One file a segmenter, all behind one protocol."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from pycocotools import mask as coco_mask

from mfpo.errors import MfpoError, RecordError
from mfpo.masks import as_rle
from mfpo.objects import category_of
from mfpo.records import RLE, Keyword, Region, SourceRecord

# A region of nearly the whole image would be global noise under another name; one of a few pixels destroys nothing.
LARGEST, SMALLEST = 0.8, 1e-4

CHOICES = (
    "give --regions coco=FILE (COCO instances JSON) or dataset (masks that the source brings), "
    "or --corruption global, random20 or crop, which need none"
)


class Segmenter(Protocol):
    def __call__(self, record: SourceRecord, image: int, keywords: Sequence[Keyword]) -> list[Region]:
        """The regions of those keywords that are seen in the record's image number `image`, best keyword first.

        Raises RecordError when this image cannot be searched, MfpoError when none can.
        """
        ...


def open_segmenter(choice: str) -> Segmenter:
    """The segmenter that `--regions CHOICE` names: `dataset` or `coco=FILE`.

    Raises MfpoError for any other choice, and for a file that holds no COCO instances.
    """
    from mfpo.build.regions.coco import CocoRegions
    from mfpo.build.regions.dataset import DatasetRegions

    name, _, file = choice.partition("=")
    if name == "coco" and file:
        return CocoRegions(Path(file))
    if choice == "dataset":
        return DatasetRegions()
    raise MfpoError(f"no regions are named {choice!r}; {CHOICES}")


def match_regions(keywords: Sequence[Keyword], objects: Iterable[tuple[str, RLE]], image: int) -> list[Region]:
    """Give each keyword the union of the masks that it names; `objects` are the (name, mask) of one image."""
    named = list(objects)
    regions = []
    for keyword in keywords:
        masks = [mask for name, mask in named if is_named(keyword["text"], name)]
        if not masks:
            continue
        sizes = {tuple(mask["size"]) for mask in masks}
        if len(sizes) > 1:
            raise RecordError(f"the masks of {keyword['text']!r} are of different sizes: {sorted(sizes)}")
        union = coco_mask.merge(masks)
        share = coco_mask.area(union) / (union["size"][0] * union["size"][1])
        if SMALLEST <= share <= LARGEST:
            regions.append(Region(keyword=keyword["text"], score=keyword["score"], mask=as_rle(union), image=image))
    return regions


def is_named(keyword: str, name: str) -> bool:
    """Whether the phrase `keyword` names the object `name`: the same COCO class, or the same last words for others.

    >>> is_named("two sleepy puppies", "dog"), is_named("tall trees", "tree"), is_named("carpet", "car")
    (True, True, False)
    """
    wanted, given = category_of(keyword), category_of(name)
    if wanted or given:
        return wanted == given
    # The plural's s is all that can differ: other endings would need a dictionary.
    return f" {keyword}".lower().removesuffix("s").endswith(f" {name}".lower().removesuffix("s"))
