"""Regions from COCO instance annotations: polygons, and run lengths compressed or not."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mfpo.build.regions import RegionSettings, Search, is_named, match_regions
from mfpo.coco import CocoImage, read_coco
from mfpo.errors import MfpoError, RecordError
from mfpo.image_names import ByImage
from mfpo.masks import as_rle, is_whole
from mfpo.records import RLE, Keyword, Region


class CocoRegions:
    """A COCO instances file. Raises MfpoError when `file` is missing, is none, or has no mask."""

    def __init__(self, file: Path, settings: RegionSettings = RegionSettings()) -> None:
        images = read_coco(file, "instances")
        stems = [os.path.splitext(os.path.basename(image.name or image.id))[0] for image in images]
        self._images = ByImage[CocoImage](file)
        for image in images:
            self._images[self._images.add(image.id, image.name)] = image
        if min(len(set(stems)), len(self._images)) < len(images):
            raise MfpoError(f"{file}: two images have one file name; give each its own, as images are found by it")
        if all(_lacks_mask(entry) for image in images for _, entry in image.annotations):
            raise MfpoError(f"{file}: no annotation has a mask; give masks, or let --regions grounded-sam find them")
        self._file = file
        self._settings = settings

    def __call__(self, searches: Sequence[Search]) -> list[list[Region] | RecordError]:
        """The regions of the keywords by category; a RecordError for an image that the file does not know."""
        return [self._search(search) for search in searches]

    def objects(self, file_name: str, keywords: Sequence[Keyword]) -> list[tuple[str, RLE]]:
        """The (category, mask) of each instance in an image that a keyword names.

        Raises RecordError when the file does not know the image, and when the mask of one is broken or missing.
        """
        image = self._find(file_name)
        named = {name for name, _ in image.annotations if any(is_named(one["text"], name) for one in keywords)}
        try:
            return [(name, _mask_of(entry, image)) for name, entry in image.annotations if name in named]
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:80]
            raise RecordError(
                f"the annotations of image {image.id[:40]} in {self._file} are broken ({reason})"
            ) from None

    def _search(self, search: Search) -> list[Region] | RecordError:
        path = search.record["images"][search.number]["path"] or ""
        size = search.pixels.shape[:2]
        try:
            objects = self.objects(path, search.keywords)
            # Polygons that were drawn for another size may leave nothing in this one.
            if objects and (annotated := self._find(path).size) != size:
                raise RecordError(
                    f"image is {list(size)}, but {self._file} says [height, width] is {list(annotated or [])}"
                )
            return match_regions(search, objects, self._settings)
        except RecordError as error:
            return error

    def _find(self, file_name: str) -> CocoImage:
        # In a record a bare number is a file's name too, and what was converted has another ending.
        key = self._images.find(os.path.splitext(file_name)[0] + ".jpg")
        if key is None:
            raise RecordError(f"image {file_name[:80]!r} is not among the images of {self._file}")
        return self._images[key]


def _mask_of(annotation: dict[str, Any], image: CocoImage) -> RLE:
    if image.size is None:
        raise ValueError("height and width must be whole numbers from 1 to 65535")
    if annotation.get("bbox") and _lacks_mask(annotation):
        raise ValueError("an object has a box, but no mask")
    # Without a box, an empty list is an object of no area.
    return as_mask(annotation.get("segmentation", []), *image.size)


def _lacks_mask(annotation: dict[str, Any]) -> bool:
    segmentation = annotation.get("segmentation", [])
    is_empty = isinstance(segmentation, list) and not any(segmentation)  # [] and [[]]
    return is_empty or (segmentation is None and "bbox" in annotation)


def as_mask(segmentation: Any, height: int, width: int) -> RLE:
    """One object's `segmentation` as compressed run lengths: polygons are drawn and united, run lengths compressed.

    Raises ValueError or TypeError for what is broken, which pycocotools would read beyond its memory.
    """
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
        if any(polygon.ndim != 1 for polygon in polygons) or (len(polygons) > 2 and all(len(p) == 2 for p in polygons)):
            raise ValueError("polygons are no lists [x, y, x, y, ...]")
        # Annotations hold some "polygons" of one or two points, which pycocotools takes for boxes or refuses.
        polygons = [polygon for polygon in polygons if len(polygon) >= 6]
        limit = 10 * max(height, width)
        if not all((np.abs(polygon) <= limit).all() and len(polygon) % 2 == 0 for polygon in polygons):
            raise ValueError("a polygon lies far outside of its image, or half a point is missing")
        if not polygons:
            polygons = [np.zeros(6)]
        return as_rle(coco_mask.merge(coco_mask.frPyObjects([p.tolist() for p in polygons], height, width)))
    size, counts = [int(side) for side in segmentation["size"]], segmentation["counts"]
    if size != [height, width]:
        raise ValueError(f"run lengths of {size} for an image of {[height, width]}")
    if isinstance(counts, list):
        if any(run < 0 or run != int(run) for run in counts) or sum(counts) != size[0] * size[1]:
            raise ValueError(f"run lengths do not cover {size}")
        return as_rle(coco_mask.frPyObjects({"size": size, "counts": counts}, height, width))
    if not isinstance(counts, str):
        raise TypeError("run lengths are neither a list nor a text")
    mask = RLE(size=size, counts=counts)
    if not is_whole(mask):
        raise ValueError(f"run lengths do not cover {size}")
    return mask
