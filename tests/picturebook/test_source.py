from itertools import pairwise

import numpy as np
import pytest
from pycocotools import mask as rle

from mfpo.errors import SettingError
from mfpo.models import load_model
from mfpo.objects import mentions
from mfpo.picturebook import WEIGHTS
from mfpo.picturebook.book import draw_book
from mfpo.picturebook.corrections import absent_kinds, correct
from mfpo.picturebook.pretrain_settings import PretrainSettings
from mfpo.picturebook.scenes import Scene, Thing, draw_scene, make_scene
from mfpo.picturebook.source import PictureBookSource
from mfpo.picturebook.splits import SPLITS, scene_seeds
from mfpo.picturebook.texts import caption
from mfpo.processors import load_processor
from mfpo.records import answer_text

# A brown dog on the left, a red car at the top right.
SCENE = Scene(0, "park", (Thing("dog", "brown", 2, 34, 26, False), Thing("car", "red", 66, 2, 26, False)))


@pytest.mark.parametrize(
    ("sample", "corrected"),
    [
        ("There is a brown dog on the left.", "There is a brown dog on the left."),
        # A wrong colour.
        ("There is a red dog on the left.", "There is a brown dog on the left."),
        # The car was not mentioned, so it replaces what is absent, place and capital included.
        ("A blue kite is in the middle.", "A brown dog is on the left."),
        (
            "A brown dog is on the left. Next to it is a pink frisbee.",
            "A brown dog is on the left. Next to it is a red car.",
        ),
        # Nothing is left to mention: the sentence goes.
        (
            "A brown dog is on the left. A pink frisbee is beside it. A red car is at the top right.",
            "A brown dog is on the left. A red car is at the top right.",
        ),
        # A reference to an absent object goes with it.
        (
            "A brown dog is on the left. A blue bus is at the top. To the right of the bus is a red car.",
            "A brown dog is on the left. There is a red car at the top right.",
        ),
    ],
)
def test_correction_is_the_smallest_change_that_is_true(sample, corrected):
    assert correct(sample, SCENE) == corrected


def test_corrected_captions_are_true_and_true_ones_stay():
    for seed in range(500):
        scene = make_scene(seed)
        true = caption(scene, np.random.default_rng(seed))
        assert correct(true, scene) == true
        habit = caption(scene, np.random.default_rng(seed), prior=1.0)
        assert {mention.category for mention in mentions(correct(habit, scene))} == scene.kinds


def test_another_model_than_the_books_own_answers_for_its_pairs(tmp_path):
    model, processor = load_model(WEIGHTS), load_processor(WEIGHTS)
    model.model.multi_modal_projector.linear_2.weight.data.zero_()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    own, blind = (list(PictureBookSource(3, model=model)) for model in (None, tmp_path))
    assert list(PictureBookSource(3, model=WEIGHTS)) == own != blind


def test_a_book_of_a_seed_that_it_has_not_leaves_no_folder(tmp_path):
    with pytest.raises(SettingError, match="seed is 100"):
        draw_book(tmp_path / "book", count=1, seed=100)
    assert not list(tmp_path.iterdir())


def test_splits_never_meet():
    ranges = [scene_seeds(split, seed) for split in SPLITS for seed in (0, 1, 99)]
    firsts = sorted(next(seeds) for seeds in ranges)
    assert min(second - first for first, second in pairwise(firsts)) >= 1_000_000
    assert firsts[0] > PretrainSettings().scenes


@pytest.mark.parametrize(("split", "seed"), [("pairs", 100), ("heldout", -1), ("test", 0)])
def test_seeds_of_which_splits_would_meet_are_refused(split, seed):
    with pytest.raises(SettingError, match="must be"):
        scene_seeds(split, seed)


@pytest.fixture(scope="module")
def rows():
    return list(PictureBookSource(20, seed=1))


def test_pairs_are_hallucinating_samples_and_their_corrections(rows):
    source = PictureBookSource(20, seed=1)
    records = [source.record(row, number) for number, row in enumerate(rows)]
    assert len(records) == len({record["id"] for record in records}) == 20
    for record in records:
        scene = make_scene(int(record["id"].removeprefix("scene-")))
        rejected, chosen = answer_text(record["rejected"]), answer_text(record["chosen"])
        assert absent_kinds(rejected, scene)
        assert not absent_kinds(chosen, scene)
        masks = draw_scene(scene)[1]
        assert {named["name"] for named in record["objects"]} == scene.kinds
        for named in record["objects"]:
            np.testing.assert_array_equal(rle.decode(named["mask"]).astype(bool), masks[named["name"]])


def test_a_seed_gives_the_same_pairs(rows):
    assert list(PictureBookSource(5, seed=1)) == rows[:5]
    assert list(PictureBookSource(5, seed=3)) != rows[:5]


def test_few_samples_are_needed_for_a_pair(rows):
    """About every second scene gives a pair, or the demo would take too long."""
    assert rows[-1]["scene"] - rows[0]["scene"] < 4 * len(rows)
