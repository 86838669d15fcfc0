"""Which words are marked."""

import random

from mfpo.report.texts import Span, cut, difference_spans, keyword_spans, object_spans


def marked(text, spans):
    return [text[span.start : span.end] for span in spans]


def test_cut_loses_no_character_and_marks_each_as_its_spans_do():
    rng = random.Random(0)
    text = "A brown dog catches a frisbee."
    for _ in range(50):
        ends = [sorted(rng.sample(range(len(text) + 1), 2)) for _ in range(rng.randrange(4))]
        spans = [Span(start, end, f"m{number}") for number, (start, end) in enumerate(ends)]
        by_character = [
            (character, {span.mark for span in spans if span.start <= place < span.end})
            for place, character in enumerate(text)
        ]
        pieces = cut(text, spans)
        assert [(c, set(piece.marks.split())) for piece in pieces for c in piece.text] == by_character


def test_keyword_is_found_whatever_its_capitals_and_spaces():
    text = "Red\nbus, a red bus."
    assert marked(text, keyword_spans(text, {"red bus": "k0"})) == ["Red\nbus", "red bus"]


def test_dog_is_not_marked_in_hot_dog_when_both_are_keywords():
    text = "A dog eats a hot dog."
    assert [
        (span.mark, text[span.start : span.end]) for span in keyword_spans(text, {"dog": "k0", "hot dog": "k1"})
    ] == [
        ("k0", "dog"),
        ("k1", "hot dog"),
    ]


def test_the_longer_of_two_keywords_that_begin_alike_wins():
    text = "A traffic light in the traffic."
    assert marked(text, keyword_spans(text, {"traffic": "k0", "traffic light": "k1"})) == ["traffic light", "traffic"]


def test_car_is_not_marked_in_carpet_or_in_scar():
    assert keyword_spans("A carpet, a scar, cars.", {"car": "k0"}) == []


def test_keyword_is_no_pattern():
    text = "a (b) and a b"
    assert marked(text, keyword_spans(text, {"(b)": "k0"})) == ["(b)"]
    assert keyword_spans("axb", {"a.b": "k0", "": "k1"}) == []


def test_only_words_that_the_other_answer_lacks_are_marked():
    chosen, rejected = "A red bus stops on the street.", "A red bus and two cars stop on the street."
    assert marked(chosen, difference_spans(chosen, rejected)) == ["stops"]
    assert marked(rejected, difference_spans(rejected, chosen)) == ["and two cars stop"]


def test_capitals_and_stops_are_no_difference():
    assert difference_spans("There, a Dog!", "there a dog") == []


def test_chinese_words_need_no_spaces_around():
    chosen, rejected = "一只棕色的狗在草地上。", "一只棕色的猫在草地上。"
    assert marked(chosen, keyword_spans(chosen, {"狗": "k0"})) == ["狗"]
    assert marked(chosen, difference_spans(chosen, rejected)) == ["狗"]
    assert marked("dog在跑", keyword_spans("dog在跑", {"dog": "k0"})) == ["dog"]


def test_words_beyond_the_first_500_are_not_compared():
    alike = " ".join(f"w{number}" for number in range(498))
    assert marked(f"{alike} red bus", difference_spans(f"{alike} red bus", f"{alike} bus")) == ["red"]
    assert difference_spans(f"{alike} a b red", f"{alike} a b") == []


def test_objects_are_marked_as_in_the_image_or_not():
    text = "Two puppies share a hot dog on a couch."
    assert [(text[s.start : s.end], s.mark) for s in object_spans(text, ["dog", "couch"])] == [
        ("puppies", "present"),
        ("hot dog", "absent"),
        ("couch", "present"),
    ]
