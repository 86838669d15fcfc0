"""Names of data sets' classes against COCO's."""

import pytest

from mfpo.class_names import class_of, coco_class
from mfpo.coco_words import CATEGORIES


def test_each_class_is_known_however_its_name_is_written():
    for name in CATEGORIES:
        ways = (
            name,
            name.replace(" ", "_"),
            name.replace(" ", "-"),
            name.replace(" ", ""),
            name.title(),
            f"{name}_(x)",
        )
        assert {coco_class(way) for way in ways} == {class_of(way) for way in ways} == {name}, name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog_collar", None),
        ("ski_boot", None),
        ("orange_juice", None),
        ("toilet_tissue", None),
        ("street_sign", None),
        ("polar_bear", "bear"),
        ("car_(automobile)", "car"),
        ("train_(railroad_vehicle)", "train"),
        ("pitcher_(vessel_for_liquid)", None),
        ("cellular_telephone", "cell phone"),
        ("kitchen_table", "dining table"),
        ("microwave_oven", "microwave"),
        ("television_set", "tv"),
        ("Person", "person"),
        ("", None),
    ],
)
def test_what_things_of_other_names_are(name, expected):
    assert class_of(name) == expected


def test_a_synonym_is_another_name_of_the_things_but_not_of_the_class():
    assert (class_of("puppy"), coco_class("puppy")) == ("dog", None)
