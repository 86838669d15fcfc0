"""How well a segmenter maps keywords to regions, measured against COCO's masks; the paper judged it by hand."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mfpo.build.keywords import rank_keywords
from mfpo.build.notes import SetAside
from mfpo.build.regions import Search, Segmenter
from mfpo.build.regions.coco import CocoRegions
from mfpo.build.settings import KeywordSettings
from mfpo.class_names import class_of
from mfpo.errors import RecordError
from mfpo.images import decode_image
from mfpo.masks import RLE, as_rle
from mfpo.objects import category_of
from mfpo.records import Region, answer_text
from mfpo.sources import Source

# What counts as the same place, as in PASCAL VOC and COCO's AP50.
_SAME_PLACE = 0.5
# Rows whose images a segmenter gets at once.
_ROWS = 64

Instances = dict[str, list[RLE]]
"""Per keyword the masks of the instances of its COCO class, where the image has any."""


@dataclass
class MappingReport:
    """How many `keywords` name a COCO class that is in their image, and how many of these have the right region.

    `one` counts the regions that have an IoU of 0.5 or more with one instance of the class, `united` those that have it
    with all its instances united, which is what a region should be. `no_region` keywords were not found at all.
    `set_aside` are the rows of which an image could not be judged, in which other images count.
    """

    keywords: int = 0
    one: int = 0
    united: int = 0
    no_region: int = 0
    set_aside: list[SetAside] = field(default_factory=list)


def check_regions(
    source: Source,
    segmenter: Segmenter,
    annotations: CocoRegions,
    settings: KeywordSettings,
    *,
    progress: Callable[[Iterable[dict[str, Any]]], Iterable[dict[str, Any]]] = iter,
) -> MappingReport:
    """Compare the regions of the keywords of `source` with COCO's `annotations` of its images.

    As in `build`, the segmenter looks for all keywords of an answer, but only those that name a COCO class which is
    in the image are judged: whether "tree" was found, COCO cannot tell.
    """
    report = MappingReport()
    rows = enumerate(progress(source))
    while chunk := list(islice(rows, _ROWS)):
        known: list[tuple[Search, Instances]] = []
        for number, row in chunk:
            try:
                known += _known_images(source, row, number, annotations, settings)
            except RecordError as error:
                report.set_aside.append(SetAside(row=number, id=source.id(row, number), reason=str(error)))
        results = segmenter([search for search, _ in known]) if known else []
        for (search, instances), result in zip(known, results, strict=True):
            try:
                _judge(search, instances, result, report)
            except RecordError as error:
                row_of = search.record["source"]["row"]
                report.set_aside.append(SetAside(row=row_of, id=search.record["id"], reason=str(error)))
    return report


def _known_images(
    source: Source, row: dict[str, Any], number: int, annotations: CocoRegions, settings: KeywordSettings
) -> Iterator[tuple[Search, Instances]]:
    """The images of a row in which a keyword names an object. Raises RecordError when COCO does not know one."""
    record = source.record(row, number)
    keywords = rank_keywords(answer_text(record["chosen"]), settings)
    for image, encoded in enumerate(record["images"]):
        objects = annotations.objects(encoded["path"] or "", keywords)
        instances = {}
        for keyword in keywords:
            category = category_of(keyword["text"])
            masks = [mask for name, mask in objects if class_of(name) == category and coco_mask.area(mask)]
            if category and masks:
                instances[keyword["text"]] = masks
        if instances:
            yield Search(record, image, np.asarray(decode_image(encoded)), keywords), instances


def _judge(search: Search, instances: Instances, result: list[Region] | RecordError, report: MappingReport) -> None:
    """Count the keywords of an image. Raises RecordError when it could not be searched, or masks do not fit it."""
    if isinstance(result, RecordError):
        raise result
    size = list(search.pixels.shape[:2])
    region_masks = {region["keyword"]: region["mask"] for region in result}
    for mask in [*region_masks.values(), *(mask for masks in instances.values() for mask in masks)]:
        if list(mask["size"]) != size:
            raise RecordError(f"image is {size[0]} x {size[1]}, but a mask of it is {mask['size']}")
    report.keywords += len(instances)
    for keyword, masks in instances.items():
        if keyword not in region_masks:
            report.no_region += 1
            continue
        report.one += iou(region_masks[keyword], masks) >= _SAME_PLACE
        report.united += iou(region_masks[keyword], [as_rle(coco_mask.merge(masks))]) >= _SAME_PLACE


def iou(mask: RLE, others: list[RLE]) -> float:
    """The largest intersection over union of `mask` with one of `others`."""
    return float(coco_mask.iou([mask], others, [0] * len(others)).max())
