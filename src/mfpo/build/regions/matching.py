"""Which keywords the masks of named objects belong to, and which masks count as regions."""

from collections.abc import Iterable

from pycocotools import mask as coco_mask

from mfpo.build.regions import Search
from mfpo.build.settings import RegionSettings
from mfpo.class_names import class_of, plain_name
from mfpo.errors import RecordError, brief
from mfpo.masks import RLE, as_rle
from mfpo.objects import category_of, mentions
from mfpo.records import Region


def is_region(mask: RLE, settings: RegionSettings) -> bool:
    """Whether `mask` covers something of its image, and neither too little nor too much."""
    share = coco_mask.area(mask) / (mask["size"][0] * mask["size"][1])
    return bool(share > 0 and settings.smallest_region <= share <= settings.largest_region)


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
            raise RecordError(f"the masks of {brief(keyword['text'])} have different sizes: {sorted(sizes)}")
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
    category = class_of(name)
    if category:
        return category_of(keyword) == category
    # The plural's s is all that can differ: other endings would need a dictionary.
    phrase, last_words = f" {keyword}".lower().removesuffix("s"), f" {plain_name(name)}".removesuffix("s")
    start = len(phrase) - len(last_words)
    # A traffic light is no light: the name may not be the end of a COCO object's.
    return phrase.endswith(last_words) and all(mention.start >= start for mention in mentions(keyword))
