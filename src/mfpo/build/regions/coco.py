"""Regions from COCO instance annotations: polygons, and run lengths compressed or not."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mfpo.build.regions import RegionSettings, Search, match_regions
from mfpo.errors import MfpoError, RecordError
from mfpo.masks import as_rle, encode_mask, is_whole
from mfpo.records import RLE, Region


class CocoRegions:
    """A COCO instances file. Raises MfpoError when `file` is missing or is none."""

    def __init__(self, file: Path, settings: RegionSettings = RegionSettings()) -> None:
        try:
            content = json.loads(file.read_bytes())
            names = {category["id"]: category["name"] for category in content["categories"]}
            self._images = {image["id"]: image for image in content["images"]}
            self._ids = {Path(image["file_name"]).stem: image["id"] for image in content["images"]}
            self._objects: dict[int, list[tuple[str, Any]]] = defaultdict(list)
            for annotation in content["annotations"]:
                named = (names[annotation["category_id"]], annotation["segmentation"])
                self._objects[annotation["image_id"]].append(named)
        except OSError as error:
            raise MfpoError(f"{file}: cannot be read ({error.strerror}); give COCO instances as JSON") from None
        except (ValueError, RecursionError) as error:
            raise MfpoError(f"{file}: not valid JSON ({error}); give COCO instances as JSON") from None
        except (KeyError, TypeError) as error:
            raise MfpoError(f"{file}: no COCO instances, {error} is wrong or missing; see cocodataset.org") from None
        if len(self._ids) < len(self._images):
            raise MfpoError(f"{file}: two images have one file name; give each its own, as images are found by it")
        self._file = file
        self._settings = settings

    def __call__(self, searches: Sequence[Search]) -> list[list[Region] | RecordError]:
        """The regions of the keywords by category; a RecordError for an image that the file does not know."""
        return [self._search(search) for search in searches]

    def objects(self, file_name: str) -> list[tuple[str, RLE]]:
        """The (category, mask) of each instance in an image. Raises RecordError when the file does not know it."""
        known = self._find(file_name)
        try:
            return [
                (name, as_mask(segmentation, known["height"], known["width"]))
                for name, segmentation in self._objects[known["id"]]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"the annotations of image {known['id']} in {self._file} are broken ({error})") from None

    def _search(self, search: Search) -> list[Region] | RecordError:
        image = search.record["images"][search.number]
        try:
            return match_regions(search, self.objects(image["path"] or ""), self._settings)
        except RecordError as error:
            return error

    def _find(self, file_name: str) -> dict[str, Any]:
        """The entry of an image: by its name without ending, else by COCO's number in it ("COCO_val2014_0042")."""
        stem = Path(file_name).stem
        number = re.fullmatch(r"(?:COCO_[a-z]+\d{4}_)?(\d+)", stem, re.IGNORECASE)
        image_id = self._ids.get(stem, int(number[1]) if number else None)
        if image_id not in self._images:
            raise RecordError(f"image {file_name!r} is not among the images of {self._file}")
        return self._images[image_id]


def as_mask(segmentation: Any, height: int, width: int) -> RLE:
    """One object's `segmentation` as compressed run lengths: polygons are drawn and united, run lengths compressed.

    Raises ValueError or TypeError for what is broken, which pycocotools would read beyond its memory.
    """
    if isinstance(segmentation, list):
        # Annotations hold some "polygons" of one or two points, which pycocotools takes for boxes or refuses.
        polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation if len(polygon) >= 6]
        limit = 10 * max(height, width)
        if not all((np.abs(polygon) <= limit).all() and len(polygon) % 2 == 0 for polygon in polygons):
            raise ValueError("a polygon lies far outside of its image, or half a point is missing")
        if not polygons:
            return encode_mask(np.zeros((height, width), dtype=bool))
        return as_rle(coco_mask.merge(coco_mask.frPyObjects([p.tolist() for p in polygons], height, width)))
    size, counts = [int(side) for side in segmentation["size"]], segmentation["counts"]
    if isinstance(counts, list):
        if any(run < 0 for run in counts) or sum(counts) != size[0] * size[1]:
            raise ValueError(f"run lengths do not cover {size}")
        return as_rle(coco_mask.frPyObjects({"size": size, "counts": counts}, height, width))
    if not isinstance(counts, str):
        raise TypeError("run lengths are neither a list nor a text")
    mask = RLE(size=size, counts=counts)
    if not is_whole(mask):
        raise ValueError(f"run lengths do not cover {size}")
    return mask
