"""The keyword graph against networkx, scipy and hand-made cases."""

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from mfpo.build.keywords import (
    Candidate,
    KeywordSettings,
    candidates,
    closeness,
    edge_weights,
    page_rank,
    rank_keywords,
    topics_of,
)
from mfpo.errors import SettingError


@pytest.fixture(scope="module")
def captions(reference_data: Path) -> list[str]:
    """100 captions by real models."""
    lines = (reference_data / "chair" / "captions_shikra_greedy.jsonl").read_text().splitlines()
    return [json.loads(line)["caption"] for line in lines[:100]]


def texts(text: str) -> list[str]:
    return [candidate.text for candidate in candidates(text)]


def slow_weights(phrases: list[Candidate], topics: list[int], settings: KeywordSettings) -> nx.DiGraph:
    """The edges by the formulas of docs/build.md, one at a time."""
    count = len(phrases)

    def mu(i: int, j: int) -> float:
        pairs = [(a, b) for a in phrases[i].positions for b in phrases[j].positions]
        return sum(1 / (1 + abs(a - b) ** settings.phi) for a, b in pairs)

    graph = nx.DiGraph()
    graph.add_nodes_from(range(count))
    for i in range(count):
        mates = [k for k in range(count) if topics[k] == topics[i] and k != i]
        position = phrases[i].positions[0]
        is_first = bool(mates) and position < min(phrases[k].positions[0] for k in mates)
        for j in range(count):
            if topics[i] == topics[j]:
                continue
            tau = mu(i, j)
            if is_first:
                tau += settings.alpha * np.exp(1 / (3 + position)) * sum(mu(k, j) for k in mates)
            graph.add_edge(j, i, weight=tau * np.exp(-settings.decay * position))
    return graph


def test_scores_equal_networkx_pagerank_on_real_captions(captions: list[str]) -> None:
    settings = KeywordSettings()
    with_several_topics = 0
    for caption in captions:
        phrases = candidates(caption)
        topics = topics_of(phrases).tolist()
        graph = slow_weights(phrases, topics, settings)
        expected = nx.pagerank(graph, alpha=settings.damping, tol=1e-12, max_iter=1000)
        scores = page_rank(edge_weights(phrases, settings), settings.damping)
        np.testing.assert_allclose(scores / scores.sum(), [expected[i] for i in range(len(phrases))], atol=1e-9)
        with_several_topics += 1 < len(set(topics)) < len(phrases)
    assert with_several_topics > 50  # otherwise the adjustment inside topics would go untested


def test_topics_equal_scipy_average_linkage_on_real_captions(captions: list[str]) -> None:
    for caption in captions:
        phrases = candidates(caption)
        nouns = sorted({noun for phrase in phrases for noun in phrase.nouns})
        has_noun = np.array([[noun in phrase.nouns for noun in nouns] for phrase in phrases])
        expected = fcluster(linkage(pdist(has_noun, "jaccard"), method="average"), t=0.74, criterion="distance")
        topics = topics_of(phrases)
        np.testing.assert_array_equal(topics[:, None] == topics, expected[:, None] == expected)


def test_closeness_by_hand() -> None:
    # Mentions at 0 and 4 against one at 2: 1 / (1 + 2) twice.
    assert closeness([(0, 4), (2,)], phi=1.0)[0, 1] == pytest.approx(2 / 3)
    assert closeness([(0,), (4,)], phi=0.5)[0, 1] == pytest.approx(1 / 3)


def test_semantic_weight_is_gamma_times_cosine() -> None:
    phrases = candidates("a dog and a cup")
    vectors = np.array([[3.0, 4.0], [4.0, 3.0]])
    settings = KeywordSettings(gamma=0.5, decay=0.0)
    difference = edge_weights(phrases, settings, vectors) - edge_weights(phrases, settings)
    np.testing.assert_allclose(difference, [[0, 0.5 * 24 / 25], [0.5 * 24 / 25, 0]])


def test_opposite_vectors_weigh_nothing() -> None:
    phrases = candidates("a dog and a cup")
    vectors = np.array([[1.0, 0.0], [-1.0, 0.0]])
    settings = KeywordSettings()
    np.testing.assert_array_equal(edge_weights(phrases, settings, vectors), edge_weights(phrases, settings))


def test_vectors_can_change_the_ranking() -> None:
    text, settings = "A dog, a cup, a tree and a house.", KeywordSettings(gamma=10.0, top_k=1)

    def near_house(phrases: list[str]) -> np.ndarray:
        return np.array(
            [{"dog": [1, 0, 0], "cup": [0, 1, 0], "tree": [0, 0, 1], "house": [1, 1, 1]}[p] for p in phrases]
        )

    assert rank_keywords(text, settings)[0]["text"] != "house"
    assert rank_keywords(text, settings, near_house)[0]["text"] == "house"


def test_candidate_is_the_noun_phrase_with_its_positions() -> None:
    found = candidates("A black cat sits on two wooden desks. The cat sleeps.")
    assert found[0] == Candidate("black cat", ("cat",), (1, 10))
    assert found[1] == Candidate("wooden desks", ("desk",), (6,))


def test_a_hot_dog_stays_a_hot_dog() -> None:
    assert texts("She eats a hot dog.") == ["hot dog"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There is a red stop sign.", ["red stop sign"]),
        ("Next to it is a teddy bear.", ["teddy bear"]),
        ("A white double sink holds cups.", ["white double sink", "cups"]),
        ("A man and a dog play with a ball.", ["man", "dog", "ball"]),  # "play" stays a verb
        ("He has to bear the noise.", ["noise"]),  # and so does "bear"
    ],
)
def test_nouns_that_the_tagger_takes_for_verbs(text: str, expected: list[str]) -> None:
    assert texts(text) == expected


@pytest.mark.parametrize("word", ["image", "scene", "picture", "background", "side", "view", "left", "right"])
def test_words_for_nothing_visible_never_win(word: str) -> None:
    text = f"The {word} shows the {word} of the {word}, and a dog in the {word}."
    assert [keyword["text"] for keyword in rank_keywords(text, KeywordSettings(top_k=9))] == ["dog"]


def test_backpack_is_not_the_back_and_sideboard_not_the_side() -> None:
    assert texts("A backpack lies on the sideboard.") == ["backpack", "sideboard"]


def test_black_cat_and_black_helmet_are_two_topics() -> None:
    assert len(set(topics_of(candidates("a black cat and a black helmet")))) == 2


def test_baseball_bat_and_table_share_no_topic_but_dining_table_and_table_do() -> None:
    bat, dining_table, table = topics_of(candidates("A baseball bat lies on a dining table. The table is old."))
    assert bat != dining_table == table


def test_a_shorter_name_takes_no_second_place() -> None:
    found = rank_keywords(
        "A dining table with a cup. The table is old. A kitchen light and a street light.", KeywordSettings(top_k=9)
    )
    names = [keyword["text"] for keyword in found]
    assert ("dining table" in names) != ("table" in names)
    assert {"kitchen light", "street light"} <= set(names)


def test_scores_fall_and_top_k_cuts() -> None:
    text = "A man with a dog walks past a car, a tree and a house."
    all_found = rank_keywords(text, KeywordSettings(top_k=9))
    scores = [keyword["score"] for keyword in all_found]
    assert scores == sorted(scores, reverse=True)
    assert len(all_found) == 5
    assert rank_keywords(text, KeywordSettings(top_k=2)) == all_found[:2]


@pytest.mark.parametrize("text", ["Yes.", "It is running quickly.", "...", "???", "1 2 3"])
def test_a_text_without_things_has_no_keywords(text: str) -> None:
    assert rank_keywords(text, KeywordSettings()) == []


def test_one_thing_is_a_keyword() -> None:
    assert [keyword["text"] for keyword in rank_keywords("A dog.", KeywordSettings())] == ["dog"]


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"damping": 1.0}, {"phi": -1.0}])
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong))):
        KeywordSettings(**wrong)
