"""Counterfactual scenes: only the edited object's pixels differ, and the right answer changes in one sentence."""

from dataclasses import replace

import numpy as np
import pytest

from mfpo.build.regions.dataset import DatasetRegions
from mfpo.build.settings import BuildSettings
from mfpo.build.steps import build_record
from mfpo.errors import RecordError
from mfpo.images import decode_image, encode_image
from mfpo.masks import decode_mask, encode_mask
from mfpo.objects import mentions
from mfpo.picturebook.corrections import THING
from mfpo.picturebook.scenes import draw_scene, make_scene
from mfpo.picturebook.source import PictureBookSource
from mfpo.picturebook.texts import caption
from mfpo.records import NamedMask, Origin, answer_text, new_record

SCENES = 250


def record(seed, chosen=None):
    scene = make_scene(seed)
    image, masks = draw_scene(scene)
    return new_record(
        id=f"scene-{seed}",
        images=[encode_image(image)],
        question="What is there?",
        chosen=chosen or caption(scene, np.random.default_rng(seed)),
        rejected="Nothing.",
        objects=[NamedMask(name=name, mask=encode_mask(mask)) for name, mask in masks.items()],
        source=Origin(dataset="picturebook", row=seed),
    )


def pixels(built, column):
    return np.asarray(decode_image(built[column][0]))


def edited(scene, **settings):
    built, area = build_record(record(scene), BuildSettings(corruption="counterfactual", **settings), None)
    return built, answer_text(built["chosen"]), answer_text(built["counter"]), area


@pytest.mark.parametrize("edit", ["any", "remove", "replace", "recolour"])
def test_only_the_edited_object_and_its_sentence_differ(edit):
    count = 0
    for seed in range(SCENES):
        try:
            built, chosen, counter, area = edited(seed, edit=edit)
        except RecordError:
            continue
        count += 1
        scene = make_scene(seed)
        differs = (pixels(built, "images") != pixels(built, "rejected_images")).any(axis=-1)
        [region] = built["regions"]
        inside = decode_mask(region["mask"])
        assert differs.any()
        assert not (differs & ~inside).any()
        assert area == inside.mean()
        # Sentence by sentence: the one that names the object is gone, or names what is there now.
        before, after = chosen.split(". "), counter.split(". ")
        lost, new = [s for s in before if s.strip(".") not in counter], [s for s in after if s.strip(".") not in chosen]
        assert len(lost) == 1
        assert len(new) == (0 if len(after) < len(before) else 1)
        # Drawn again from the sentence alone, m' is the same: y' has no false object and no false colour.
        found = THING.search(new[0]) if new else None
        things = [
            replace(thing, kind=found[3].lower(), colour=found[2].lower()) if found else None
            for thing in scene.things
            if thing.kind == region["keyword"]
        ] + [thing for thing in scene.things if thing.kind != region["keyword"]]
        image, _ = draw_scene(replace(scene, things=tuple(thing for thing in things if thing)))
        np.testing.assert_array_equal(np.asarray(image), pixels(built, "rejected_images"))
        kinds = scene.kinds - {region["keyword"]} | ({found[3].lower()} if found else set())
        assert {mention.category for mention in mentions(counter)} <= kinds
    assert count > 0.8 * SCENES


def test_several_objects_can_be_replaced_at_once():
    built, chosen, counter, _ = edited(3, edit="replace", edits=9)
    assert len(built["regions"]) > 1
    assert {m.category for m in mentions(counter)}.isdisjoint(region["keyword"] for region in built["regions"])
    assert len(chosen.split(". ")) == len(counter.split(". "))


def test_the_edit_depends_on_seed_and_id_alone():
    assert edited(5)[2] == edited(5)[2]
    assert len({edited(5, seed=seed)[2] for seed in range(8)}) > 1


def test_an_answer_without_an_object_is_refused():
    with pytest.raises(RecordError, match="names no object that can be edited"):
        build_record(record(5, "The image shows a park."), BuildSettings(corruption="counterfactual"), None)


def test_a_photo_cannot_be_drawn_again():
    photo = record(5) | {"source": Origin(dataset="photos", row=0)}
    with pytest.raises(RecordError, match="not a scene of the picture book"):
        build_record(photo, BuildSettings(corruption="counterfactual"), None)


def test_erased_regions_show_the_backdrop():
    for seed in range(20):
        built, _ = build_record(record(seed), BuildSettings(corruption="erase"), DatasetRegions())
        assert built["regions"]
        scene, masks = make_scene(seed), draw_scene(make_scene(seed))[1]
        found = np.any([decode_mask(region["mask"]) for region in built["regions"]], axis=0)
        left = tuple(thing for thing in scene.things if not (masks[thing.kind] & found).any())
        assert len(left) < len(scene.things)
        image, _ = draw_scene(replace(scene, things=left))
        np.testing.assert_array_equal(np.asarray(image), pixels(built, "rejected_images"))


def test_a_source_of_scenes_builds_with_it():
    source = PictureBookSource(1)
    row = next(iter(source))
    built, _ = build_record(source.record(row, 0), BuildSettings(corruption="counterfactual"), None)
    assert built["counter"] != built["chosen"]
