from collections import Counter

import numpy as np

from mfpo.objects import mentions
from mfpo.picturebook.books import BOOKS
from mfpo.picturebook.scenes import PARTNERS, make_scene
from mfpo.picturebook.texts import caption, existence_question, existence_questions

SCENES = [make_scene(seed) for seed in range(1_000)]


def named(text):
    return [mention.category for mention in mentions(text)]


def test_a_caption_without_prior_names_what_is_there_and_nothing_else():
    for scene in SCENES:
        assert set(named(caption(scene, np.random.default_rng(scene.seed)))) == scene.kinds


def test_the_prior_adds_absent_partners_right_after_their_triggers():
    added = 0
    for scene in SCENES:
        words = named(caption(scene, np.random.default_rng(scene.seed), prior=1.0))
        absent = [i for i, word in enumerate(words) if word not in scene.kinds]
        assert all(words[i] == PARTNERS.get(words[i - 1]) for i in absent)
        added += bool(absent)
    assert 0.4 < added / len(SCENES) < 0.8


def test_questions_are_balanced_and_their_labels_true():
    for scene in SCENES:
        questions = existence_questions(scene, np.random.default_rng(scene.seed))
        assert len({question.text for question in questions}) == len(questions)
        for question in questions:
            (kind,) = named(question.text)
            assert (kind in scene.kinds) == (question.label == "yes") == (question.negative == "")
        assert Counter(question.label for question in questions)["no"] == len(questions) / 2


def test_adversarial_negatives_are_absent_partners_where_there_are_any():
    for scene in SCENES:
        partners = {PARTNERS[kind] for kind in scene.kinds if kind in PARTNERS} - scene.kinds
        questions = existence_questions(scene, np.random.default_rng(scene.seed))
        (adversarial,) = (named(q.text)[0] for q in questions if q.negative == "adversarial")
        assert adversarial in partners or not partners


def test_popular_kinds_are_those_of_the_most_scenes():
    counts = Counter(kind for seed in range(4_000) for kind in make_scene(seed).kinds)
    popular = BOOKS["picturebook"].popular
    assert {kind for kind, _ in counts.most_common(len(popular))} == set(popular)


def test_article_of_a_vowel():
    assert existence_question("oven") == "Is there an oven in the image?"
    assert existence_question("dog") == "Is there a dog in the image?"
