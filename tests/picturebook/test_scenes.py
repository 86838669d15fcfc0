import numpy as np
import pytest

from mfpo.coco_words import CATEGORIES
from mfpo.picturebook.drawings import KINDS
from mfpo.picturebook.pen import RGB
from mfpo.picturebook.scenes import PARTNERS, SIDE, THEMES, draw_scene, make_scene
from mfpo.picturebook.sprites import sprite

SCENES = [make_scene(seed) for seed in range(2_000)]


def test_kinds_are_coco_categories_and_there_are_enough():
    assert len(KINDS) >= 24
    assert set(KINDS) <= set(CATEGORIES)
    assert len(THEMES) >= 6
    assert set().union(*THEMES.values()) | set(PARTNERS) | set(PARTNERS.values()) <= set(KINDS)


def test_scenes_have_two_to_five_objects_each_kind_once():
    counts = [len(scene.things) for scene in SCENES]
    assert set(counts) == {2, 3, 4, 5}
    assert all(len(scene.kinds) == len(scene.things) for scene in SCENES)


@pytest.mark.parametrize("theme", THEMES)
def test_themes_strongly_favour_their_own_kinds(theme):
    kinds = [thing.kind for scene in SCENES if scene.theme == theme for thing in scene.things]
    partners = {PARTNERS[kind] for kind in THEMES[theme] if kind in PARTNERS}
    own = np.mean([kind in partners | set(THEMES[theme]) for kind in kinds])
    assert own > 0.8


def test_a_partner_is_often_there_and_often_not():
    beside = [PARTNERS[kind] in scene.kinds for scene in SCENES for kind in scene.kinds & set(PARTNERS)]
    assert 0.3 < np.mean(beside) < 0.7


def test_masks_are_exact():
    """Outside all masks the picture is the backdrop; inside a mask it is the object, and no two overlap."""
    for scene in SCENES[:50]:
        image, masks = draw_scene(scene)
        assert set(masks) == scene.kinds
        assert np.sum(list(masks.values()), axis=0).max() == 1
        empty, _ = draw_scene(type(scene)(scene.seed, scene.theme, ()))
        differs = (np.asarray(image) != np.asarray(empty)).any(-1)
        inside = np.any(list(masks.values()), axis=0)
        assert not differs[~inside].any()
        for thing in scene.things:
            pixels, shape = sprite(thing.kind, thing.colour, thing.side, thing.mirrored)
            mask = masks[thing.kind]
            np.testing.assert_array_equal(np.asarray(image)[mask], pixels[shape])


def test_every_object_is_about_two_patches_wide():
    for scene in SCENES[:200]:
        for mask in draw_scene(scene)[1].values():
            rows, columns = np.nonzero(mask)
            assert max(np.ptp(rows), np.ptp(columns)) >= 20
            assert mask.shape == (SIDE, SIDE)


def test_a_seed_gives_one_scene():
    first, again = draw_scene(make_scene(7))[0], draw_scene(make_scene(7))[0]
    assert make_scene(7) == make_scene(7)
    assert first.tobytes() == again.tobytes()
    assert make_scene(7) != make_scene(8)


def test_colours_have_names_that_are_drawn():
    assert all(set(kind.colours) <= set(RGB) for kind in KINDS.values())
