"""Regions against masks made by hand, and COCO's three ways to store one."""

import json
from pathlib import Path

import numpy as np
import pytest

from mfpo.build.regions import Search, Segmenter, open_segmenter
from mfpo.build.regions.coco import CocoRegions
from mfpo.build.regions.dataset import DatasetRegions
from mfpo.build.regions.matching import is_named, is_region, match_regions
from mfpo.build.settings import RegionSettings
from mfpo.errors import MfpoError, RecordError, SettingError
from mfpo.masks import decode_mask, encode_mask
from mfpo.records import EncodedImage, Keyword, NamedMask, Origin, Region, SourceRecord, new_record

SIZE = (40, 60)


def box(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[rows, columns] = True
    return mask


LEFT, RIGHT = box(slice(5, 25), slice(10, 30)), box(slice(5, 25), slice(40, 50))


def record(path: str | None = "000000000042.jpg", objects: tuple[NamedMask, ...] | None = None) -> SourceRecord:
    return new_record(
        id="r",
        images=[EncodedImage(bytes=b"", path=path)],
        question="What is there?",
        chosen="A dog.",
        rejected="A cat.",
        objects=objects,
        source=Origin(dataset="test", row=7),
    )


def search_for(*texts: str, of: SourceRecord | None = None, number: int = 0) -> Search:
    """The search for keywords in an image of a record, whose pixels these segmenters do not look at."""
    pixels = np.zeros((*SIZE, 3), dtype=np.uint8)
    return Search(of or record(), number, pixels, [Keyword(text=text, score=1.0) for text in texts])


def regions_of(segment: Segmenter, search: Search) -> list[Region]:
    """The regions of one search; a RecordError in its place is raised."""
    (result,) = segment([search])
    if isinstance(result, RecordError):
        raise result
    return result


def instances(folder: Path, annotations: list[tuple[int, object]], file_name: str = "000000000042.jpg") -> Path:
    file = folder / "instances.json"
    content = {
        "images": [{"id": 42, "file_name": file_name, "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
        "annotations": [
            {"image_id": 42, "category_id": category, "segmentation": mask} for category, mask in annotations
        ],
    }
    file.write_text(json.dumps(content))
    return file


def test_rle_survives_encoding_and_has_text_counts() -> None:
    encoded = encode_mask(LEFT)
    assert isinstance(encoded["counts"], str)
    assert encoded["size"] == list(SIZE)
    np.testing.assert_array_equal(decode_mask(encoded), LEFT)


def test_polygons_without_an_area_are_no_region(tmp_path: Path) -> None:
    annotations = [(18, []), (18, [[10, 5, 30, 5]]), (18, [[10, 5, 10.9, 5, 10.9, 5.9]]), (18, [[0] * 6])]
    assert regions_of(CocoRegions(instances(tmp_path, annotations)), search_for("dog")) == []


def test_a_mask_of_nothing_is_no_region_whatever_the_limits() -> None:
    settings = RegionSettings(smallest_region=0.0, largest_region=1.0)
    nothing, dot = box(slice(0), slice(0)), box(slice(1), slice(1))
    assert [is_region(encode_mask(mask), settings) for mask in (nothing, dot, ~nothing)] == [False, True, True]
    search = search_for("dog", of=record(objects=(NamedMask(name="dog", mask=encode_mask(nothing)),)))
    assert DatasetRegions(settings)([search]) == [[]]


def test_a_keyword_gets_all_instances_of_its_category_and_no_other(tmp_path: Path) -> None:
    third = box(slice(30, 38), slice(0, 60))
    file = instances(tmp_path, [(18, encode_mask(LEFT)), (17, encode_mask(third)), (18, encode_mask(RIGHT))])
    (region,) = regions_of(CocoRegions(file), search_for("puppies", "tree"))
    np.testing.assert_array_equal(decode_mask(region["mask"]), LEFT | RIGHT)


@pytest.mark.parametrize("path", ["000000000042.png", "COCO_val2014_000000000042.jpg", "42.jpg"])
def test_the_image_is_found_by_name_or_number(path: str, tmp_path: Path) -> None:
    segment = CocoRegions(instances(tmp_path, [(18, encode_mask(LEFT))]))
    assert len(regions_of(segment, search_for("dog", of=record(path)))) == 1


@pytest.mark.parametrize("path", ["43.jpg", "dog.jpg", "my-holiday-42.jpg", "42-42.jpg", "COCO_42.jpg", None])
def test_an_unknown_image_is_set_aside_and_not_called_empty(path: str | None, tmp_path: Path) -> None:
    segment = CocoRegions(instances(tmp_path, [(18, encode_mask(LEFT))]))
    with pytest.raises(RecordError, match="is not among the images of"):
        regions_of(segment, search_for("dog", of=record(path)))


@pytest.mark.parametrize(
    ("pixels", "is_region"), [(0, False), (69, False), (70, True), (32_000, True), (32_001, False), (40_000, False)]
)
def test_less_than_a_patch_or_nearly_the_whole_image_is_no_region(pixels: int, is_region: bool) -> None:
    mask = np.arange(40_000).reshape(200, 200) < pixels  # a patch of LLaVA's is 1/576 of the image: 69.4 pixels
    assert len(match_regions(search_for("dog"), [("dog", encode_mask(mask))])) == is_region


def test_how_large_a_region_is_can_be_set() -> None:
    mask = encode_mask(np.arange(40_000).reshape(200, 200) < 4_000)
    for smallest, largest, expected in [(0.1, 0.1, 1), (0.11, 0.8, 0), (0.0, 0.09, 0)]:
        settings = RegionSettings(smallest_region=smallest, largest_region=largest)
        assert len(match_regions(search_for("dog"), [("dog", mask)], settings)) == expected, settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"smallest_region": 0.9}, "smallest_region 0.9"),
        ({"largest_region": 1.1}, "largest_region is 1.1"),
        ({"box_threshold": 1.5}, "box_threshold is 1.5"),
        ({"text_threshold": -0.1}, "text_threshold is -0.1"),
        ({"mask_threshold": float("nan")}, "mask_threshold is nan"),
        ({"region_batch": 0}, "region_batch is 0"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        RegionSettings(**wrong)


def test_a_batch_is_searched_in_order_and_an_impossible_search_has_its_reason_in_place(tmp_path: Path) -> None:
    segment = CocoRegions(instances(tmp_path, [(18, encode_mask(LEFT)), (17, encode_mask(RIGHT))]))
    searches = [search_for("cat"), search_for("dog", of=record("7.jpg")), search_for("dog", "cat"), search_for()]
    cat, unknown, both, nothing = segment(searches)
    assert [region["keyword"] for region in cat] == ["cat"]
    assert isinstance(unknown, RecordError)
    assert "'7.jpg' is not among the images of" in str(unknown)
    assert [region["keyword"] for region in both] == ["dog", "cat"]
    assert nothing == []
    assert segment([]) == []


@pytest.mark.parametrize(
    ("phrase", "name", "expected"),
    [
        ("the woman", "person", True),
        ("tall trees", "tree", True),
        ("tree", "street", False),
        ("street", "tree", False),
        ("carpet", "car", False),
        ("hot dog", "dog", False),
        ("a hot dog", "hot_dog", True),
        ("a dog", "hot_dog", False),
        ("two teddy bears", "teddy_bear", True),
        ("street signs", "street_sign", True),
        ("the sign", "street_sign", False),
        ("the dining table", "diningtable", True),
        ("the table", "diningtable", True),
        ("potted plants", "pottedplant", True),
        ("the television", "tvmonitor", True),
        ("an airplane", "aeroplane", True),
        ("a couch", "Sofa", True),
        ("a hot dog", "Hot dog", True),
        ("the bats", "bat_(animal)", True),
        ("a puppy", "dog_collar", False),
        ("the dog collar", "dog_collar", True),
        ("the hair dryer", "hair_dryer", True),
        ("a remote", "remote_control", True),
        ("people", "person", True),
        ("the traffic light", "light", False),
        ("a stop sign", "sign", False),
        ("a wine glass", "glass", False),
        ("a baseball bat", "bat_(animal)", False),
        ("potted plants", "plant", False),
        ("a red dog collar", "dog_collar", True),
        ("the lights", "light", True),
    ],
)
def test_which_phrase_names_which_object(phrase: str, name: str, expected: bool) -> None:
    assert is_named(phrase, name) is expected


def test_dataset_masks_belong_to_the_first_image() -> None:
    objects = (NamedMask(name="dog", mask=encode_mask(LEFT)), NamedMask(name="tree", mask=encode_mask(RIGHT)))
    found = regions_of(DatasetRegions(), search_for("green tree", of=record(objects=objects)))
    assert [region["keyword"] for region in found] == ["green tree"]
    np.testing.assert_array_equal(decode_mask(found[0]["mask"]), RIGHT)
    assert regions_of(DatasetRegions(), search_for("green tree", of=record(objects=objects), number=1)) == []


def test_a_source_without_masks_says_which_regions_there_are() -> None:
    with pytest.raises(MfpoError, match=r"row 7 of test has no object masks.*coco=FILE") as caught:
        DatasetRegions()([search_for("dog")])
    assert not isinstance(caught.value, RecordError)  # it ends the run


def test_masks_of_the_dataset_are_found_by_names_with_underscores() -> None:
    objects = (
        NamedMask(name="hot_dog", mask=encode_mask(LEFT)),
        NamedMask(name="street_sign", mask=encode_mask(RIGHT)),
    )
    found = regions_of(DatasetRegions(), search_for("dog", "hot dog", "street sign", of=record(objects=objects)))
    assert [region["keyword"] for region in found] == ["hot dog", "street sign"]
    np.testing.assert_array_equal(decode_mask(found[0]["mask"]), LEFT)


def test_a_picture_without_objects_has_no_regions() -> None:
    assert regions_of(DatasetRegions(), search_for("dog", of=record(objects=()))) == []


@pytest.mark.parametrize("choice", ["coco", "coco=", "sam", "", "lisa", "lisa=", "sam3=", "clipseg=", "dataset=x"])
def test_an_unknown_choice_lists_the_known_ones(choice: str) -> None:
    known = r"dataset .* coco=FILE .* grounded-sam=DETECTOR,SAM, sam3, sam3=MODEL, clipseg, clipseg=MODEL or lisa=MODEL"
    with pytest.raises(MfpoError, match=known):
        open_segmenter(choice)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MfpoError, match="cannot be read"):
        open_segmenter(f"coco={tmp_path / 'instances.json'}")


def test_masks_of_different_sizes_are_no_silent_fallback() -> None:
    masks = [encode_mask(np.ones(shape, dtype=bool)) for shape in ((20, 20), (10, 20))]
    with pytest.raises(RecordError, match="different sizes"):
        match_regions(search_for("dog"), [("dog", mask) for mask in masks])
