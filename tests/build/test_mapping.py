"""Mapping accuracy on masks made by hand, and COCO's own masks against themselves."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mfpo.build.mapping import MappingReport, check_regions, iou
from mfpo.build.regions import Search
from mfpo.build.regions.coco import CocoRegions
from mfpo.build.regions.dataset import DatasetRegions
from mfpo.build.settings import KeywordSettings, RegionSettings
from mfpo.errors import RecordError
from mfpo.images import encode_image
from mfpo.masks import Mask, encode_mask
from mfpo.records import NamedMask, Origin, Region, SourceRecord, new_record
from mfpo.sources import open_source

SIZE = (40, 60)


def box(rows: slice, columns: slice, size: tuple[int, int] = SIZE) -> Mask:
    mask = np.zeros(size, dtype=bool)
    mask[rows, columns] = True
    return mask


DOG = box(slice(5, 25), slice(10, 30))


class Given:
    """A source of one-image records: (name of the image, answer, masks that it brings)."""

    name = "given"

    def __init__(self, *rows: tuple[str, str, list[tuple[str, Mask]]], size: tuple[int, int] = SIZE) -> None:
        self._rows, self._size = rows, size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter([{"id": f"row {number}", "row": row} for number, row in enumerate(self._rows)])

    def id(self, row: dict[str, Any], number: int) -> str:
        return row["id"]

    def record(self, row: dict[str, Any], number: int) -> SourceRecord:
        path, chosen, objects = row["row"]
        if not chosen:
            raise RecordError("the answer is empty")
        return new_record(
            id=row["id"],
            images=[{**encode_image(Image.new("RGB", self._size[::-1])), "path": path}],
            question="What is there?",
            chosen=chosen,
            rejected="Nothing.",
            objects=[NamedMask(name=name, mask=encode_mask(mask)) for name, mask in objects],
            source=Origin(dataset="given", row=number),
        )


@pytest.fixture
def annotations(tmp_path: Path) -> CocoRegions:
    """Image 1 has a dog, image 2 two cats side by side."""
    left, right = box(slice(0, 20), slice(0, 20)), box(slice(0, 20), slice(20, 40))
    objects = [(1, 18, DOG), (2, 17, left), (2, 17, right)]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
        "annotations": [
            {"image_id": image, "category_id": category, "segmentation": encode_mask(mask)}
            for image, category, mask in objects
        ],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content))
    return CocoRegions(file)


def figures(report: MappingReport) -> tuple[int, int, int, int]:
    return report.keywords, report.one, report.united, report.no_region


@pytest.mark.parametrize(
    ("shift", "right"),
    # A box of 20 moved by 6 leaves 14 / 26 of the union, by 7 only 13 / 27.
    [(0, 1), (6, 1), (7, 0), (20, 0)],
)
def test_a_shifted_mask_is_right_up_to_half(shift: int, right: int, annotations: CocoRegions) -> None:
    moved = box(slice(5, 25), slice(10 + shift, 30 + shift))
    source = Given(("1.jpg", "A dog sleeps.", [("dog", moved)]))
    report = check_regions(source, DatasetRegions(), annotations, KeywordSettings())
    assert figures(report) == (1, right, right, 0)


def test_one_of_two_instances_and_both_together(annotations: CocoRegions) -> None:
    """The union of two equal instances has an IoU of just 0.5 with one; with a bit more it has less."""
    both, one = box(slice(0, 20), slice(0, 40)), box(slice(0, 20), slice(0, 20))
    more = box(slice(0, 21), slice(0, 40))
    for mask, right, united in [(both, 1, 1), (more, 0, 1), (one, 1, 1), (box(slice(0, 20), slice(0, 15)), 1, 0)]:
        source = Given(("2.jpg", "Some cats.", [("cat", mask)]))
        report = check_regions(source, DatasetRegions(), annotations, KeywordSettings())
        assert figures(report) == (1, right, united, 0)


def test_only_what_coco_knows_is_judged(annotations: CocoRegions) -> None:
    """A tree is no class of COCO's, a cat is not in this image, and the hot dog is no dog."""
    source = Given(
        ("1.jpg", "A tree and a cat.", [("tree", DOG), ("cat", DOG)]),
        ("1.jpg", "A hot dog.", [("hot dog", DOG)]),
        ("1.jpg", "A dog and a tree.", []),
        ("1.jpg", "A puppy near a tree.", [("tree", DOG)]),
    )
    report = check_regions(source, DatasetRegions(), annotations, KeywordSettings())
    assert figures(report) == (2, 0, 0, 2)
    assert report.set_aside == []


def test_nothing_to_judge_is_no_keyword(annotations: CocoRegions) -> None:
    report = check_regions(Given(("1.jpg", "A tree.", [])), DatasetRegions(), annotations, KeywordSettings())
    assert figures(report) == (0, 0, 0, 0)


def test_rows_that_cannot_be_judged_are_counted_with_their_reason(annotations: CocoRegions) -> None:
    small = box(slice(5, 25), slice(10, 30), size=(30, 60))
    source = Given(
        ("1.jpg", "", []),
        ("7.jpg", "A dog.", []),
        ("1.jpg", "A dog.", [("dog", DOG)]),
        ("1.jpg", "A dog.", [("dog", small)]),
    )
    report = check_regions(source, DatasetRegions(), annotations, KeywordSettings())
    assert figures(report) == (1, 1, 1, 0)
    assert [(row["row"], row["id"]) for row in report.set_aside] == [(0, "row 0"), (1, "row 1"), (3, "row 3")]
    reasons = [row["reason"] for row in report.set_aside]
    assert reasons[0] == "the answer is empty"
    assert "'7.jpg' is not among the images of" in reasons[1]
    assert reasons[2] == "image is 40 x 60, but a mask of it is [30, 60]"


def test_an_image_that_is_not_as_annotated_is_set_aside(annotations: CocoRegions) -> None:
    source = Given(("1.jpg", "A dog.", []), size=(60, 40))
    report = check_regions(source, DatasetRegions(), annotations, KeywordSettings())
    assert report.keywords == 0
    assert report.set_aside[0]["reason"] == "image is 60 x 40, but a mask of it is [40, 60]"


def test_what_the_segmenter_cannot_search_is_set_aside(annotations: CocoRegions) -> None:
    def refuse(searches: Sequence[Search]) -> list[list[Region] | RecordError]:
        return [RecordError("too narrow") for _ in searches]

    report = check_regions(Given(("1.jpg", "A dog.", [])), refuse, annotations, KeywordSettings())
    assert (report.keywords, [row["reason"] for row in report.set_aside]) == (0, ["too narrow"])


def test_the_rows_go_to_the_segmenter_in_batches(annotations: CocoRegions) -> None:
    sizes = []

    def count(searches: Sequence[Search]) -> list[list[Region] | RecordError]:
        sizes.append(len(searches))
        return annotations(searches)

    source = Given(*[("1.jpg", "A dog.", [])] * 100)
    assert figures(check_regions(source, count, annotations, KeywordSettings())) == (100, 100, 100, 0)
    assert sizes == [64, 36]


def test_iou_by_counting_pixels() -> None:
    random = np.random.default_rng(0)
    one, *others = random.random((4, *SIZE)) < 0.4
    expected = max((one & other).sum() / (one | other).sum() for other in others)
    assert iou(encode_mask(one), [encode_mask(other) for other in others]) == pytest.approx(expected)


def test_cocos_masks_against_themselves(reference_data: Path) -> None:
    """By themselves only keywords with several instances in their image can miss each single one."""
    photos = reference_data / "photos"
    settings = RegionSettings(smallest_region=0.0, largest_region=1.0)
    coco = CocoRegions(photos / "instances.json", settings)
    report = check_regions(open_source(photos / "preferences.jsonl"), coco, coco, KeywordSettings())
    assert report.keywords > 20
    assert report.united == report.keywords
    assert report.no_region == 0
    assert report.set_aside == []
    assert report.one > 0.8 * report.keywords
