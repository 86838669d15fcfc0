"""Checkers: the same objects as CHAIR, two thresholds of a detector, a judge that is asked claim by claim."""

import json
import re

import pytest
from PIL import Image

from mfpo.errors import MfpoError, RecordError
from mfpo.evaluate.answers import read_answers
from mfpo.evaluate.chair import chair
from mfpo.images import encode_image
from mfpo.objects import is_denied, mentions
from mfpo.pairs.ask import Asker
from mfpo.pairs.check import FALSE, TRUE, UNKNOWN, Checked, Claim, Shown, check_choice, open_checker
from mfpo.pairs.coco import object_claims
from mfpo.pairs.judge import _place, _read_claims
from mfpo.pairs.questions import Asked
from mfpo.pairs.settings import PairsSettings
from mfpo.settings import with_options
from mfpo.truth import load_annotations

IMAGE = encode_image(Image.new("RGB", (48, 32), "green"))


def shown(text, objects=None, name="1.png"):
    return Shown(Asked(name, IMAGE, name, "What is there?", objects), text)


def open_check(choice, tmp_path, asker=None, **values):
    from mfpo.pairs.check import CHECKERS

    settings = with_options(PairsSettings, CHECKERS[choice.partition("=")[0]])(**values)
    return open_checker(choice, lambda: asker, tmp_path / "own", settings)


def test_false_objects_are_those_that_chair_counts(reference_data):
    """On 1,500 captions of real models, but for objects that the caption itself says are not there."""
    folder = reference_data / "chair"
    truth = load_annotations(folder / "coco2014_objects.jsonl.gz")
    captions = hallucinated = denied = 0
    for file in sorted(folder.glob("captions_*.jsonl")):
        for score in chair(read_answers(file), truth).captions:
            text = score.answer.text
            false = [claim for claim in object_claims(text, score.truth) if claim.verdict == FALSE]
            absent = [m for m in mentions(text) if m.category not in score.truth]
            assert tuple(m.category for m in absent) == score.hallucinated
            said = [m for m in absent if not is_denied(text, m.start, m.end)]
            assert [(one.object, one.start) for one in false] == [(m.category, m.start) for m in said]
            captions += 1
            hallucinated += len(score.hallucinated)
            denied += len(score.hallucinated) - len(said)
    assert (captions, denied) == (1500, 14)
    assert hallucinated > 1000


def test_what_is_denied_is_no_claim():
    for text in (
        "There is no dog.",
        "No cats or dogs.",
        "A dog is not visible.",
        "There aren't any dogs.",
        "Neither cat.",
    ):
        assert object_claims(text, frozenset()) == (), text
    for text in ("Not only a dog.", "No smoke without a fire, and the dog.", "No. A dog!"):
        assert [claim.object for claim in object_claims(text, frozenset())] == ["dog"], text


def test_coco_finds_the_image_by_its_name(tmp_path):
    truth = tmp_path / "truth.jsonl"
    truth.write_text('{"image_id": "1.png", "objects": ["dog"]}\n')
    check = open_check(f"coco={truth}", tmp_path)
    found, missing = check([shown("A dog and a cat."), shown("A dog.", name="2.png")])
    assert [(claim.object, claim.verdict) for claim in found] == [("dog", TRUE), ("cat", FALSE)]
    assert isinstance(missing, RecordError)


def test_dataset_takes_the_objects_of_the_question(tmp_path):
    check = open_check("dataset", tmp_path)
    claims, missing = check([shown("A puppy and a cat.", ["dog", "tree"]), shown("A dog.")])
    assert [(claim.object, claim.verdict) for claim in claims] == [("dog", TRUE), ("cat", FALSE)]
    assert "brings no objects" in str(missing)


@pytest.mark.parametrize(
    ("choice", "words"), [("chair", "no check is named"), ("coco", "lacks the file"), ("dataset=x", "takes nothing")]
)
def test_a_wrong_choice_is_told(choice, words):
    with pytest.raises(MfpoError, match=words):
        check_choice(choice)


SPLIT = [{"words": "a dog", "question": "Is there a dog?"}, {"words": "A red cat", "question": "Is there a red cat?"}]


def test_a_judge_is_asked_claim_by_claim_and_its_verdicts_are_kept(tmp_path, fake_server):
    def reply(content):
        if isinstance(content, str):
            return "I cannot." if "bird" in content else json.dumps(SPLIT)
        (question,) = [part["text"] for part in content if part["type"] == "text"]
        assert [part["type"] for part in content] == ["image_url", "text"]
        return "Yes." if "dog" in question else "Hmm." if "bird" in question else "No, it is not."

    pytest.importorskip("openai")
    with fake_server(reply) as server:
        how = {"judge_endpoint": server.url, "attempts": 2}
        answers = [shown("A red cat and a dog."), shown("A bird.")]
        found = open_check("judge=m", tmp_path, **how)(answers)
        assert [(claim.start, claim.end, claim.object, claim.verdict) for claim in found[0]] == [
            (0, 9, "A red cat", FALSE),
            (14, 19, "a dog", TRUE),
        ]
        assert found[1] == (Claim(0, 7, "A bird.", UNKNOWN),)  # it is not split, twice
        asked = len(server.bodies)
        assert asked == 1 + 2 + 2
        assert open_check("judge=m", tmp_path, **how)(answers) == found
        assert len(server.bodies) == asked


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ('I see [1] claim: [{"words": "a dog", "question": "?"}]', ["a dog"]),
        ('[{"words": "a [red] dog", "question": "?"},\n {"words": "b", "question": "?"}\n] [2]', ["a [red] dog", "b"]),
        ("There is no claim [1]: [ ]", []),
        ("[]", []),
        ("[1]", None),
        ("None.", None),
        ('[{"words": "a dog", "question": "?"}', None),
        ('[{"words": "a dog"}]', None),
    ],
)
def test_a_judges_list_is_found_between_other_words(reply, words):
    claims = _read_claims(reply)
    assert (claims and [said for said, _ in claims]) == words


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("man", (26, 29)),  # not within "woman"
        ("A Red  car", (9, 18)),
        ("a red\ncar", (9, 18)),
        ("woman, a red car", (2, 18)),
        ("wom", (0, 29)),
        ("a blue car", (0, 29)),
        ("a ( car", (0, 29)),
        (" ", (0, 29)),
    ],
)
def test_a_claim_stands_where_its_words_do(words, place):
    assert _place("A woman, a red car, and a man", words) == place


def test_an_unreadable_verdict_is_unknown_and_the_judge_rewrites(tmp_path, fake_server):
    def reply(content):
        if isinstance(content, str):
            return "A dog." if "again" in content else json.dumps(SPLIT)
        return "Well." if "dog" in content[-1]["text"] else "no"

    pytest.importorskip("openai")
    with fake_server(reply) as server:
        check = open_check("judge=m", tmp_path, judge_endpoint=server.url, attempts=1)
        (claims,) = check([shown("A red cat and a dog.")])
        assert [claim.verdict for claim in claims] == [FALSE, UNKNOWN]
        asked = shown("").asked
        assert check.rewrite([(asked, Checked("A red cat and a dog.", claims))]) == ["A dog."]
        assert "- A red cat\n" in server.bodies[-1]["messages"][0]["content"]


def test_a_model_judges_itself_by_yes_and_no(tmp_path):
    """The picture book's model knows what is in its scenes."""
    from mfpo.models import load_model
    from mfpo.picturebook import WEIGHTS
    from mfpo.picturebook.questions import PictureBookQuestions
    from mfpo.processors import load_processor

    asker = Asker({}, lambda asked: [], load_model(WEIGHTS), load_processor(WEIGHTS))
    check = open_check("judge", tmp_path, asker)
    questions = PictureBookQuestions(8)
    asked = [questions.question(row, number) for number, row in enumerate(questions)]
    text = "There is a dog, a car, a couch, a kite and a boat."
    right = [
        claim.verdict == (TRUE if claim.object in one.objects else FALSE)
        for one, claims in zip(asked, check([Shown(one, text) for one in asked]), strict=True)
        for claim in claims
    ]
    assert len(right) == len(asked) * len(re.findall(r"\ba ", text))
    assert sum(right) >= 0.95 * len(right)  # of 150 such verdicts 7 are wrong


def test_a_detector_has_two_thresholds(tmp_path, tiny_owlv2):
    answer = shown("A black dog, an old clock, and no cat.")
    scores = {}
    for there, absent in ((1.0, 0.0), (0.0, 0.0), (1.0, 1.0)):
        check = open_check(f"detector={tiny_owlv2}", tmp_path, there=there, absent=absent)
        (claims,) = check([answer])
        assert [claim.object for claim in claims] == ["dog", "clock"]
        scores[there, absent] = {claim.verdict for claim in claims}
    assert scores == {(1.0, 0.0): {UNKNOWN}, (0.0, 0.0): {TRUE}, (1.0, 1.0): {FALSE}}
    assert open_check(f"detector={tiny_owlv2}", tmp_path)([]) == []
    with pytest.raises(MfpoError, match=r"absent 0\.9 is above there 0\.1"):
        open_check(f"detector={tiny_owlv2}", tmp_path, there=0.1, absent=0.9)


def test_an_image_too_narrow_for_a_detector_is_set_aside(tmp_path, tiny_owlv2):
    narrow = encode_image(Image.new("RGB", (2, 4000)))
    asked = Asked("narrow", narrow, "narrow.png", "What is there?")
    check = open_check(f"detector={tiny_owlv2}", tmp_path)
    fault, nothing, claims = check([Shown(asked, "A dog."), Shown(asked, "It is nice."), shown("A dog.")])
    assert isinstance(fault, RecordError)
    assert "image 0 is 2 x 4000, too narrow to search for keywords" in str(fault)
    assert isinstance(nothing, RecordError)
    assert [claim.object for claim in claims] == ["dog"]
