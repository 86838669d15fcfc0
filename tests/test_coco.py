"""COCO files with faults: each is read as it is meant, or refused in one line, and is never taken for an empty one."""

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mfpo.build.regions.coco import CocoRegions
from mfpo.build.settings import BuildSettings
from mfpo.build.steps import build_record
from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer
from mfpo.evaluate.chair import chair
from mfpo.images import encode_image
from mfpo.masks import decode_mask, encode_mask
from mfpo.records import new_record
from mfpo.truth import load_annotations

SIZE = (40, 60)
MASK = np.zeros(SIZE, dtype=bool)
MASK[5:25, 10:30] = True
POLYGON = [10, 5, 30, 5, 30, 25, 10, 25]
COUNTS = encode_mask(MASK)["counts"]

EMPTY = "an object has a box or an area, but its mask is empty"


def runs(mask: np.ndarray) -> list[int]:
    flat = mask.flatten(order="F").astype(int)
    return np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()


def content() -> dict[str, Any]:
    """Image 1 has a dog, image 2 a cat; the names are no numbers."""
    names = ((1, "a.jpg"), (2, "b.jpg"))
    return {
        "images": [{"id": id, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for id, name in names],
        "categories": [{"id": 18, "name": "dog"}, {"id": 58, "name": "hot dog"}, {"id": 17, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 18, "segmentation": [[*POLYGON]], "bbox": [10, 5, 20, 20]},
            {"id": 2, "image_id": 2, "category_id": 17, "segmentation": [[*POLYGON]], "bbox": [10, 5, 20, 20]},
        ],
    }


def built(file: Path) -> np.ndarray | None:
    """The region of the dog in image a.jpg, None where the whole image is destroyed."""
    record = new_record(
        id="r",
        images=[{**encode_image(Image.new("RGB", SIZE[::-1])), "path": "a.jpg"}],
        question="What is there?",
        chosen="A dog.",
        rejected="A cat.",
        source={"dataset": "test", "row": 0},
    )
    made, _ = build_record(record, BuildSettings(), CocoRegions(file))
    return decode_mask(made["regions"][0]["mask"]) if made["regions"] else None


def scored(file: Path) -> frozenset[str]:
    """The classes in image a.jpg."""
    (score,) = chair([Answer(None, "a.jpg", None, "A dog.")], load_annotations(file)).captions
    return score.truth


def put(part: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    """Put values into each entry of a part; ... removes one, and a function makes the new one of the old."""

    def change(data: dict[str, Any]) -> None:
        for entry in data[part]:
            for key, value in values.items():
                entry[key] = value(entry[key]) if callable(value) else value
                if value is ...:
                    del entry[key]

    return change


def mask(segmentation: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["annotations"][0].update(segmentation=segmentation)


def first(part: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data[part][0].update(values)


def both(*changes: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    return lambda data: [change(data) for change in changes] and None


def rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    return put("categories", name=lambda name: new if name == old else name)


def people(data: dict[str, Any]) -> None:
    data["categories"] = [{"id": 18, "name": "person", "keypoints": ["nose"]}]
    data["annotations"][1]["category_id"] = 18


HARMLESS = {
    "keypoints beside the masks": put("categories", keypoints=["nose"]),
    "image ids as texts": put("images", id=str),
    "references as texts": put("annotations", image_id=str, category_id=str),
    "category ids as texts": put("categories", id=str),
    "ids as floats": both(put("images", id=float), put("annotations", category_id=float)),
    "ids that are words": both(put("images", id=lambda id: f"x{id}"), put("annotations", image_id=lambda id: f"x{id}")),
    "names in a folder": put("images", file_name=lambda name: f"train/{name}"),
    "names in a folder of Windows": put("images", file_name=lambda name: f"train\\{name}"),
    "names in upper case endings": put("images", file_name=lambda name: name.replace("jpg", "JPG")),
    "names of another ending": put("images", file_name=lambda name: name.replace("jpg", "png")),
    "names without ending": put("images", file_name=lambda name: name.removesuffix(".jpg")),
    "sizes as floats": put("images", height=float, width=float),
    "class in capitals": rename("dog", "Dog"),
    "class with a sense": rename("dog", "dog_(animal)"),
    "another class with underscores": rename("hot dog", "hot_dog"),
    "another class in one word": rename("hot dog", "hotdog"),
    "compressed run lengths": mask({"size": list(SIZE), "counts": COUNTS}),
    "plain run lengths": mask({"size": list(SIZE), "counts": runs(MASK)}),
    "run lengths as floats": mask({"size": [40.0, 60.0], "counts": [float(run) for run in runs(MASK)]}),
    "polygon of floats": mask([[float(side) for side in POLYGON]]),
    "a polygon in a corner pixel beside it": mask([POLYGON, [0, 0, 1, 0, 1, 1]]),
    "a point beside the polygon": mask([POLYGON, [1, 1]]),
    "no annotation ids": put("annotations", id=...),
    "no boxes": put("annotations", bbox=...),
    "more keys": lambda data: data.update(info={"x": 1}, licenses=None, extra=[1]),
    "an image without annotations": lambda data: data["images"].append({"id": 3, "file_name": "c.jpg"}),
    "a broken mask of another image": lambda data: data["annotations"][1].update(segmentation="x"),
    "a box of another class": lambda data: data["annotations"].append(
        {"image_id": 1, "category_id": 17, "bbox": [1, 1, 5, 5]}
    ),
}
# What each says as the segmenter's file, and as CHAIR's truth; None where the truth has the dog all the same.
FAULTS: dict[str, tuple[Any, str, str | None]] = {
    "ids missing": (put("images", id=...), r"id is missing\) in images\[0\]", r"id is missing"),
    "ids null": (put("images", id=None), "id is missing", "id is missing"),
    "ids that are no numbers": (put("images", id=1.5), "id is 1.5, but must be", "id is 1.5"),
    "ids NaN": (put("images", id=math.nan), "id is nan", "id is nan"),
    "ids true": (put("images", id=True), "id is True", "id is True"),
    "ids that are lists": (put("images", id=[1]), r"id is \[1\]", r"id is \[1\]"),
    "ids empty": (put("annotations", image_id=""), "image_id is ''", "image_id is ''"),
    "two images of one id": (put("images", id=1), "two of its images have the id 1", "two of its images"),
    "two images of one id as text": (first("images", id="2"), "two of its images have the id 2", "two of its"),
    "two categories of one id": (put("categories", id=18), "two of its categories have the id 18", "two of its"),
    "names missing": (put("images", file_name=...), "'a.jpg' is not among", "without annotations: a.jpg"),
    "names null": (put("images", file_name=None), "'a.jpg' is not among", "without annotations: a.jpg"),
    "names that are numbers": (put("images", file_name=7), "file_name is 7, but must be a string", "file_name is 7"),
    "names empty": (put("images", file_name=""), "file_name is ''", "file_name is ''"),
    "names of other images": (put("images", file_name=lambda n: f"x{n}"), "is not among", "without annotations"),
    "one name for two": (put("images", file_name="a.jpg"), "two images have the same file name", None),
    "no images": (lambda data: data.update(images=[]), "annotations of 1, but no entry", "annotations of 1, but no"),
    "images missing": (lambda data: data.pop("images"), "images is missing", "images is missing"),
    "images by id": (lambda data: data.update(images={"1": {}}), "not lists of objects", "not lists of objects"),
    "images of other things": (lambda data: data.update(images=[1]), "not lists of objects", "not lists of objects"),
    "categories missing": (lambda data: data.pop("categories"), "categories is missing", "categories is missing"),
    "categories null": (lambda data: data.update(categories=None), "not lists of objects", "not lists of objects"),
    "no categories": (lambda data: data.update(categories=[]), "of 18, but no entry", "of 18, but no entry"),
    "classes without names": (put("categories", name=...), "name is missing", "name is missing"),
    "classes with numbers as names": (put("categories", name=3), "name is 3", "name is 3"),
    "category null": (put("annotations", category_id=None), "category_id is missing", "category_id is missing"),
    "category unknown": (
        first("annotations", category_id=99),
        r"annotations of 99, but no entry with this id\), category_id of 1 of 2 annotations",
        "annotations of 99",
    ),
    "image unknown": (
        put("annotations", image_id=7),
        r"annotations of 7, but no entry with this id\), image_id of 2 of 2 annotations",
        "annotations of 7",
    ),
    "padded ids": (put("annotations", image_id=lambda id: f"0{id}"), "annotations of 01, but no", "annotations of 01"),
    "annotations missing": (lambda data: data.pop("annotations"), "annotations is missing", "annotations is missing"),
    "no annotations": (lambda data: data.update(annotations=[]), "no annotation has a mask", "has no annotations"),
    "only boxes": (put("annotations", segmentation=[]), "no annotation has a mask .*grounded-sam", None),
    "only boxes, no key": (put("annotations", segmentation=...), "no annotation has a mask", None),
    "only boxes, null": (put("annotations", segmentation=None), "no annotation has a mask", None),
    "a box among masks": (mask([]), r"annotations of image 1 in .* \(an object has a box, but no mask\)", None),
    "a null among masks": (mask(None), "has a box, but no mask", None),
    "a second dog with a box": (
        lambda data: data["annotations"].append({"image_id": 1, "category_id": 18, "bbox": [1, 1, 5, 5]}),
        "has a box, but no mask",
        None,
    ),
    "a flat polygon": (mask(POLYGON), r"polygons are not lists \[x, y", None),
    "a list of points": (mask([[10, 5], [30, 5], [30, 25], [10, 25]]), "polygons are points, not lists", None),
    "a list of lists of points": (mask([[[10, 5], [30, 5], [30, 25]]]), "polygons are not lists", None),
    "polygons of objects": (mask([{"x": 1, "y": 2}]), "polygons are not lists", None),
    "half a point": (mask([POLYGON[:7]]), "has an odd number of coordinates", None),
    "a polygon with NaN": (mask([[*POLYGON[:7], math.nan]]), "of numbers", None),
    "a polygon with null": (mask([[*POLYGON[:7], None]]), "of numbers", None),
    "a polygon far away": (mask([[side * 1e6 for side in POLYGON]]), "far outside", None),
    "a polygon of huge numbers": (mask([[10**400] * 8]), "of numbers", None),
    "a polygon of long texts": (mask([["x" * 5000] * 8]), "of numbers", None),
    "run lengths of the turned image": (mask({"size": [60, 40], "counts": COUNTS}), r"of size \[60, 40\]", None),
    "run lengths that are cut off": (mask({"size": list(SIZE), "counts": COUNTS[:-3]}), "do not cover", None),
    "run lengths of bytes": (mask({"size": list(SIZE), "counts": f"b'{COUNTS}'"}), "do not cover", None),
    "run lengths too long": (mask({"size": list(SIZE), "counts": [1, 10**30]}), "do not cover", None),
    "run lengths of halves": (mask({"size": list(SIZE), "counts": [0.5, 2399.5]}), "do not cover", None),
    "run lengths below 0": (mask({"size": list(SIZE), "counts": [-1, 2401]}), "do not cover", None),
    "run lengths that are texts": (mask({"size": list(SIZE), "counts": ["1", 2399]}), "do not cover", None),
    "run lengths with NaN": (mask({"size": list(SIZE), "counts": [math.nan, 2400]}), "do not cover", None),
    "run lengths of nothing": (mask({"size": list(SIZE)}), "counts is None, but must be a list or a string", None),
    "run lengths that are a number": (mask({"size": list(SIZE), "counts": 3}), "counts is 3, but must be", None),
    "infinite size": (mask({"size": [math.inf, 60], "counts": COUNTS}), r"of size \[inf, 60\]", None),
    "no size": (mask({"counts": COUNTS}), "of size None", None),
    "a size that is a number": (mask({"size": 40, "counts": COUNTS}), "of size 40 for an image of", None),
    "a mask that is a text": (mask("[[1, 2]]"), r"segmentation is '\[\[1, 2\]\]', but must be polygons or", None),
    "a mask that is true": (mask(True), "segmentation is True, but must be", None),
    "a mask that is a number": (mask(7), "segmentation is 7, but must be", None),
    "a box as a polygon": (mask([[10, 10, 30, 30]]), f"image 1 in .*{EMPTY}", None),
    "a box as a polygon, and no box": (both(put("annotations", bbox=...), mask([[10, 10, 30, 30]])), EMPTY, None),
    "a polygon beside its image": (mask([[side + 100 for side in POLYGON]]), EMPTY, None),
    "a polygon beside its image, and no box": (
        both(put("annotations", bbox=...), mask([[side - 100 for side in POLYGON]])),
        EMPTY,
        None,
    ),
    "a polygon of zeros": (mask([[0] * 6]), EMPTY, None),
    "a polygon of zeros with an area": (both(put("annotations", bbox=..., area=400), mask([[0] * 6])), EMPTY, None),
    "run lengths of the background": (mask({"size": list(SIZE), "counts": [2400]}), EMPTY, None),
    "compressed run lengths of the background": (mask({**encode_mask(np.zeros_like(MASK))}), EMPTY, None),
    "polygons from 0 to 1": (mask([[side / 60 for side in POLYGON]]), "from 0 to 1, but must be in pixels", None),
    "polygons and boxes from 0 to 1": (
        both(put("annotations", bbox=[0.2, 0.1, 0.5, 0.5]), mask([[side / 60 for side in POLYGON]])),
        "from 0 to 1, but must be in pixels",
        None,
    ),
    "only boxes as polygons": (put("annotations", segmentation=[[10, 10, 30, 30]]), "no annotation has a mask", None),
    "only background": (
        put("annotations", segmentation={"size": list(SIZE), "counts": [2400]}),
        "no annotation has a mask",
        None,
    ),
    "only polygons from 0 to 1": (
        put("annotations", segmentation=[[0.1, 0.1, 0.9, 0.1, 0.9, 1]], bbox=[0.1, 0.1, 0.8, 0.9]),
        "no annotation has a mask of pixels",
        None,
    ),
    "boxes, and polygons beside their images": (
        both(put("annotations", segmentation=[]), mask([[side + 100 for side in POLYGON]])),
        "no annotation has a mask",
        None,
    ),
    "sizes missing": (put("images", height=..., width=...), "height and width must be whole numbers", None),
    "sizes as texts": (put("images", height=str), "height and width must be whole numbers", None),
    "sizes of 0": (put("images", height=0), "height and width must be whole numbers", None),
    "sizes turned": (
        put("images", height=60, width=40),
        r"image is \[40, 60\], but .* says \[height, width\] is \[60, 40\]",
        None,
    ),
    "huge sizes": (put("images", height=10**9, width=10**9), "height and width must be whole numbers", None),
    "keypoints of people": (people, "keypoints of people", "keypoints of people"),
}
OTHER_FILES = {
    "captions": (
        {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "A dog."}]},
        "but a file of captions",
    ),
    "panoptic": (
        content() | {"annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": []}]},
        "but a file of panoptic segments",
    ),
    "results": ([{"image_id": 1, "category_id": 18, "bbox": [1, 2, 3, 4], "score": 0.5}], "but a list of results"),
    "caption results": ([{"image_id": 1, "caption": "A dog."}], "but a list of results"),
    "empty list": ([], "not lists of objects"),
    "a number": (3, "not lists of objects"),
    "null": (None, "not lists of objects"),
}


def write(folder: Path, data: Any) -> Path:
    file = folder / "instances.json"
    file.write_text(json.dumps(data))
    return file


def refused(function: Callable[[Path], Any], file: Path, reason: str) -> None:
    with pytest.raises(MfpoError, match=reason) as caught:
        function(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(file), "")) < 300


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_meant_is_read(name: str, tmp_path: Path) -> None:
    data = content()
    HARMLESS[name](data)
    file = write(tmp_path, data)
    np.testing.assert_array_equal(built(file), MASK)
    if name != "a box of another class":
        assert scored(file) == {"dog"}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_read_as_meant_is_refused(name: str, tmp_path: Path) -> None:
    change, for_build, for_chair = FAULTS[name]
    data = content()
    change(data)
    file = write(tmp_path, data)
    refused(built, file, for_build)
    if for_chair is None:
        assert "dog" in scored(file)
    else:
        refused(scored, file, for_chair)


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_of_another_kind_is_called_what_it_is(name: str, tmp_path: Path) -> None:
    data, reason = OTHER_FILES[name]
    file = write(tmp_path, data)
    for function in (CocoRegions, load_annotations):
        refused(function, file, f"is not a COCO instances file .*{reason}")


@pytest.mark.parametrize("cut", [0, 1, 100, 400])
def test_a_file_that_was_cut_off(cut: int, tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content())[:cut])
    for function in (CocoRegions, load_annotations):
        refused(function, file, "not valid JSON" if cut else "is empty")


TRICKY = [None, True, 0, -1, 2, 10**30, math.nan, math.inf, "", " ", "1", "x" * 5000, "\ud800", "a\nb", [], {}, [[]]]
TRICKY += [[None], {"size": [2**40, -1], "counts": "é"}, "cat", "b.jpg", [[1] * 6], "0002.jpg"]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each (container, key) inside of a file."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *places(value[key])]]


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(number=st.integers(0, 10**6), value=st.sampled_from([..., *TRICKY]))
def test_any_fault_is_read_or_refused_in_one_line(number: int, value: Any, tmp_path: Path) -> None:
    """An image loses its dog only where another class or another image is said."""
    data = content()
    annotations = data["annotations"]
    found = places(data)
    container, key = found[number % len(found)]
    if value is ...:
        del container[key]
    else:
        container[key] = copy.deepcopy(value)
    file = write(tmp_path, data)
    region, truth = outcome(built, file), outcome(scored, file)
    is_other = key in ("name", "category_id", "image_id") or container is annotations
    if truth is not None:
        assert "dog" in truth or is_other
    is_shape = key == "segmentation" or not isinstance(key, str)
    if region is not None and not is_other:
        assert np.array_equal(region[0], MASK) or (is_shape and region[0] is not None)


def outcome(function: Callable[[Path], Any], file: Path) -> Any:
    """What the function makes of a file, None where it refuses it in one line."""
    try:
        made = function(file)
    except MfpoError as error:
        message = str(error)
    else:
        return [made] if function is built else made
    assert re.fullmatch(r".{1,400}", message), message
    return None
