"""The second book: its menus, its fair scenes, and that the books are told apart."""

from collections import Counter

import numpy as np
import pytest

from mfpo.build.settings import BuildSettings
from mfpo.build.steps import build_record
from mfpo.images import decode_image, encode_image
from mfpo.picturebook import NAMES
from mfpo.picturebook.books import BOOKS, CONTEXT
from mfpo.picturebook.drawings import KINDS
from mfpo.picturebook.menus import make_fair_scene, make_menu_scene, menu
from mfpo.picturebook.scenes import THEMES, draw_scene, make_scene
from mfpo.picturebook.texts import caption, existence_questions
from mfpo.records import Origin, new_record

MENU_SCENES = [make_menu_scene(seed) for seed in range(2_000)]
FAIR_SCENES = [make_fair_scene(seed) for seed in range(4_000)]


def test_the_books_are_those_that_the_command_line_knows():
    assert tuple(BOOKS) == NAMES


def cell(thing):
    return thing.column + 3 * thing.row


def on_menu(scene, slots):
    placed = {(thing.kind, thing.colour, cell(thing)) for thing in scene.things}
    return sum(slot in placed for slot in slots)


@pytest.mark.parametrize("theme", THEMES)
def test_a_menu_has_four_kinds_each_with_a_colour_and_a_cell_of_its_own(theme):
    for number, kinds in enumerate((THEMES[theme][:4], THEMES[theme][-4:])):
        slots = menu(theme, number)
        assert tuple(kind for kind, _, _ in slots) == kinds
        assert len({place for _, _, place in slots}) == 4
        assert all(colour in KINDS[kind].colours for kind, colour, _ in slots)
        assert all((place < 3) == KINDS[kind].flies for kind, _, place in slots)


def test_scenes_to_learn_from_are_mostly_on_one_of_their_themes_menus():
    """A slot is as on the menu with 0.97, but in the 8 % of the scenes that are fair, where it hardly ever is."""
    best = [max(on_menu(scene, menu(scene.theme, number)) for number in (0, 1)) for scene in MENU_SCENES]
    assert np.mean(best) / 4 == pytest.approx(0.92 * 0.97, abs=0.03)


def test_fair_scenes_have_no_menus():
    assert {len(scene.things) for scene in FAIR_SCENES} == {2, 3, 4, 5}
    # Half the draws are of the theme, and the others hit it with a sixth of all kinds; repeated ones are drawn again.
    of_theme = [thing.kind in THEMES[scene.theme] for scene in FAIR_SCENES for thing in scene.things]
    assert np.mean(of_theme) == pytest.approx(0.56, abs=0.03)
    colours = Counter(t.colour for scene in FAIR_SCENES for t in scene.things if t.kind == "person")
    assert min(colours.values()) > 0.8 * max(colours.values())
    best = [max(on_menu(scene, menu(scene.theme, number)) for number in (0, 1)) for scene in FAIR_SCENES]
    assert np.mean(best) < 0.5


def test_scenes_are_drawn_and_described_as_in_the_first_book():
    for scene in MENU_SCENES[:200] + FAIR_SCENES[:200]:
        _, masks = draw_scene(scene)
        assert set(masks) == scene.kinds
        assert len(scene.kinds) == len(scene.things) > 0
        assert np.sum(list(masks.values()), axis=0).max() == 1
        text = caption(scene, np.random.default_rng(scene.seed))
        assert all(f"{thing.colour} {thing.kind}" in text for thing in scene.things)


def test_adversarial_negatives_are_of_the_theme_and_popular_ones_of_the_most_scenes():
    popular = BOOKS[CONTEXT].popular
    counts = Counter(kind for scene in FAIR_SCENES for kind in scene.kinds)
    assert {kind for kind, _ in counts.most_common(len(popular))} == set(popular)
    for scene in FAIR_SCENES[:200]:
        for question in existence_questions(scene, np.random.default_rng(scene.seed)):
            pool = {"adversarial": THEMES[scene.theme], "popular": popular}.get(question.negative, KINDS)
            assert any(f" {kind} in the image" in question.text for kind in pool)


def test_a_record_is_edited_in_its_own_book():
    """The same id names another scene in each book."""
    for book, make in (("picturebook", make_scene), (CONTEXT, make_fair_scene)):
        scene = make(7)
        image, _ = draw_scene(scene)
        record = new_record(
            id="scene-7",
            images=[encode_image(image)],
            question="What is there?",
            chosen=caption(scene, np.random.default_rng(0)),
            rejected="Nothing.",
            source=Origin(dataset=book, row=0),
        )
        built, area = build_record(record, BuildSettings(corruption="counterfactual"), None)
        differs = np.asarray(image) != np.asarray(decode_image(built["rejected_images"][0]))
        assert 0 < differs.any(axis=-1).mean() <= area < 0.2
