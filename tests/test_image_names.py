"""Which image a name or a number means."""

import pickle
from pathlib import Path

import pytest

from mfpo.errors import MfpoError, RecordError
from mfpo.image_names import ByImage, find_all


def known(*images):
    table = ByImage[int](Path("inst.json"))
    for number, (id, name) in enumerate(images):
        table[table.add(id, name)] = number
    return table


def found(table, called):
    key = table.find(called)
    return None if key is None else table[key]


@pytest.mark.parametrize(
    ("images", "called", "expected"),
    [
        # COCO's own: names and ids are one number.
        ([("42", "000000000042.jpg")], "COCO_val2014_000000000042.jpg", 0),
        ([("42", "000000000042.jpg")], "val2017/000000000042.jpg", 0),
        ([("42", "000000000042.jpg")], "42", 0),
        ([("42", "000000000042.jpg")], "42.png", 0),
        ([("42", "val2014/COCO_val2014_000000000042.jpg")], "000000000042", 0),
        ([("42", "images/000000000042.jpg")], "42", 0),
        ([("42", "000000000042.jpg")], "43", None),
        ([("42", "000000000042.jpg")], "my-42.jpg", None),
        # A subset with ids of its own: 12 digits are COCO's number all the same.
        ([("5", "000000000042.jpg")], "COCO_val2014_000000000042.jpg", 0),
        ([("5", "000000000042.jpg")], "5", 0),
        ([("5", "000000000042.jpg")], "42", None),
        ([("5", "000000000042.jpg")], "5.jpg", None),
        # Names that say nothing.
        ([("42", None)], "42", 0),
        ([("42", None)], "0042.jpg", 0),
        ([("042", None)], "42.jpg", 0),
        ([("a", None)], "a", 0),
        # A name counts before a number.
        ([("1", "0002.jpg"), ("2", "0003.jpg")], "0002.jpg", 0),
        ([("1", "0002.jpg"), ("2", "0003.jpg")], "0003.png", 1),
        ([("1", "0002.jpg"), ("2", "0003.jpg")], "0001.jpg", None),
        ([("1", "0002.jpg"), ("2", "0003.jpg")], "2.jpg", None),
        ([("1", "0002.jpg"), ("2", None)], "0002.jpg", 0),
        ([("1", "0002.jpg"), ("2", None)], "2.jpg", 1),
        ([("1", "0002.jpg"), ("2", "0003.jpg")], "1", 0),
        ([("1", "0002.jpg"), ("2", "0003.jpg")], "3", None),
        ([("7", "park/a.jpg")], "7", 0),
        ([("7", "park/a.jpg")], "7.jpg", None),
        ([("7", "park/a.jpg")], "a.jpg", 0),
        ([("7", "park/a.jpg")], "park/a.png", 0),
        ([("7", "park/a.jpg")], "street/a.jpg", None),
        ([("1", "train/1.jpg"), ("2", "val/1.jpg")], "val/1.jpg", 1),
        ([("1", "a.jpg"), ("2", "a.png")], "a.png", 1),
        ([("x1", "a.jpg")], "x1", 0),
    ],
)
def test_what_finds_an_image(images, called, expected):
    table = known(*images)
    assert found(table, called) == expected
    assert found(pickle.loads(pickle.dumps(table)), called) == expected  # as another process gets it


@pytest.mark.parametrize(
    ("images", "called"),
    [
        ([("1", "0002.jpg"), ("2", "0003.jpg")], "2"),
        ([("1", "0002.jpg"), ("2", "0003.jpg")], "0002"),
        ([("1", "2.jpg"), ("2", None)], "2"),
        ([("1", "train/a.jpg"), ("2", "val/a.jpg")], "a.jpg"),
        ([("1", "a.jpg"), ("2", "a.png")], "a.webp"),
        ([("5", "000000000042.jpg"), ("42", "b.jpg")], "42"),
    ],
)
def test_what_may_be_two_images_is_refused(images, called):
    with pytest.raises(RecordError, match=rf"image '{called}' may be any of 2 images of inst\.json"):
        known(*images).find(called)


def test_one_number_written_in_two_ways_is_refused():
    with pytest.raises(MfpoError, match=r"inst\.json: 7 and 007 may be one image or two"):
        known(("7", "7.jpg"), ("007", "007.jpg"))
    assert len(known(("42", "COCO_val2014_000000000042.jpg"), ("42", "000000000042.jpg"))) == 1


def test_all_that_are_known():
    table = known(("1", "0002.jpg"), ("2", "0003.jpg"))
    assert find_all(["0002.jpg", "0001.jpg", "b.jpg", ""], table) == {"0002.jpg": 0}
    assert find_all(["000000000003.jpg", "4"], {"3": 5}) == {"000000000003.jpg": 5}
