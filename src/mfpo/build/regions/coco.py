"""Regions from COCO instance annotations: polygons, and run lengths compressed or not."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from mfpo.build.regions import Search, segmenter
from mfpo.build.regions.matching import is_named, match_regions
from mfpo.build.settings import RegionSettings
from mfpo.coco import CocoImage, read_coco
from mfpo.errors import MfpoError, RecordError, brief
from mfpo.folders import file_states
from mfpo.image_names import ByImage
from mfpo.masks import RLE, as_rle, is_whole
from mfpo.records import Keyword, Region


@segmenter("coco")
class CocoRegions:
    """A COCO instances file. Raises MfpoError when `file` is missing, of another kind, or has no mask."""

    def __init__(self, file: Path | str, settings: RegionSettings = RegionSettings()) -> None:
        file = Path(file)
        images = read_coco(file, "instances")
        stems = [os.path.splitext(os.path.basename(image.name or image.id))[0] for image in images]
        self._images = ByImage[CocoImage](file)
        for image in images:
            self._images[self._images.add(image.id, image.name)] = image
        if min(len(set(stems)), len(self._images)) < len(images):
            raise MfpoError(f"{file}: two images have the same file name; give each its own, as images are found by it")
        # A file with masks has one in its first annotations: no other is drawn here.
        if not any(_has_mask(entry, image) for image in images for _, entry in image.annotations):
            raise MfpoError(
                f"{file}: no annotation has a mask of pixels in its image; give such masks, or let "
                "--regions grounded-sam find them"
            )
        self._file = file
        self.provenance = {"coco": file_states([file])}
        self._settings = settings

    def __call__(self, searches: Sequence[Search]) -> list[list[Region] | RecordError]:
        """The regions of the keywords by category; a RecordError for an image that the file does not know."""
        return [self._search(search) for search in searches]

    def objects(self, file_name: str, keywords: Sequence[Keyword]) -> list[tuple[str, RLE]]:
        """The (category, mask) of each instance in an image that a keyword names.

        Raises RecordError when the file does not know the image, and when the mask of one is broken or missing.
        """
        image = self._find(file_name)
        named = {name for name, _ in image.annotations if any(is_named(keyword["text"], name) for keyword in keywords)}
        try:
            return [(name, _mask_of(entry, image)) for name, entry in image.annotations if name in named]
        except ValueError as error:
            raise RecordError(
                f"the annotations of image {image.id[:40]} in {self._file} are broken ({error})"
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
            raise RecordError(f"image {brief(file_name)} is not among the images of {self._file}")
        return self._images[key]


class _NoMask(ValueError):
    """An object has an area, but no mask in pixels."""


def _has_mask(annotation: dict[str, Any], image: CocoImage) -> bool:
    try:
        _mask_of(annotation, image)
    except _NoMask:
        return False
    except ValueError:  # broken otherwise, which the row says that needs it
        return True
    return not _lacks_mask(annotation)


def _mask_of(annotation: dict[str, Any], image: CocoImage) -> RLE:
    if annotation.get("bbox") and _lacks_mask(annotation):
        raise _NoMask("an object has a box, but no mask")
    if image.size is None:
        raise ValueError("height and width must be whole numbers from 1 to 65535")
    # Without a box, an empty list is an object of no area.
    segmentation = annotation.get("segmentation", [])
    mask = as_mask(segmentation, *image.size)
    box, area = annotation.get("bbox"), annotation.get("area", 0)
    areas = [area if _is_number(area) else 0]
    if isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)):
        areas.append(box[2] * box[3])
    if isinstance(segmentation, list):
        areas.append(_spanned(segmentation))
    # COCO has some objects of less than a pixel, which leave none.
    if max(areas) > 1 and not coco_mask.area(mask):
        raise _NoMask("an object has a box or an area, but its mask is empty")
    return mask


def _lacks_mask(annotation: dict[str, Any]) -> bool:
    segmentation = annotation.get("segmentation", [])
    is_empty = isinstance(segmentation, list) and not any(segmentation)  # [] and [[]]
    return is_empty or (segmentation is None and "bbox" in annotation)


def as_mask(segmentation: Any, height: int, width: int) -> RLE:
    """One object's `segmentation` as compressed run lengths: polygons are drawn and united, run lengths compressed.

    Raises ValueError for what is broken, which pycocotools would read beyond its memory.
    """
    if isinstance(segmentation, list):
        return _draw(segmentation, height, width)
    if not isinstance(segmentation, dict):
        raise ValueError(f"segmentation is {brief(segmentation)}, but must be polygons or run lengths")
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(f"run lengths of size {brief(size)} for an image of {[height, width]}")
    if isinstance(counts, list):
        if not all(_is_number(run) and run >= 0 and run == int(run) for run in counts) or sum(counts) != height * width:
            raise ValueError(f"run lengths do not cover {size}")
        return as_rle(coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width))
    if not isinstance(counts, str):
        raise ValueError(f"counts is {brief(counts)}, but must be a list or a string")
    mask = RLE(size=[height, width], counts=counts)
    if not is_whole(mask):
        raise ValueError(f"run lengths do not cover {size}")
    return mask


def _draw(polygons: list[Any], height: int, width: int) -> RLE:
    if not all(isinstance(polygon, list) and all(map(_is_number, polygon)) for polygon in polygons):
        raise ValueError("polygons are not lists [x, y, x, y, ...] of numbers")
    if len(polygons) > 2 and all(len(polygon) == 2 for polygon in polygons):
        raise ValueError("polygons are points, not lists [x, y, x, y, ...]")
    sides = [side for polygon in polygons for side in polygon]
    if sides and 0 <= min(sides) <= max(sides) <= 1 < height * width and _spanned(polygons) > 0:
        raise _NoMask("its polygons are in numbers from 0 to 1, but must be in pixels")
    # Annotations hold some "polygons" of one or two points, which pycocotools takes for boxes or refuses.
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    limit = 10 * max(height, width)
    if not all(max(map(abs, polygon)) <= limit and len(polygon) % 2 == 0 for polygon in polygons):
        raise ValueError("a polygon lies far outside its image, or has an odd number of coordinates")
    return as_rle(coco_mask.merge(coco_mask.frPyObjects(polygons or [[0] * 6], height, width)))


def _spanned(polygons: list[list[float]]) -> float:
    """The area of the box around all points."""
    across, down = ([side for polygon in polygons for side in polygon[start::2]] for start in (0, 1))
    return (max(across) - min(across)) * (max(down) - min(down)) if across and down else 0


def _is_number(value: Any) -> bool:
    """Whether `value` is a number, and a float can hold it."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53
