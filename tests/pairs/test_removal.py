"""False things go from a text so that whole sentences are left."""

import random

import pytest

from mfpo.objects import mentions
from mfpo.pairs.check import FALSE, TRUE, Checked, Claim
from mfpo.pairs.edit import without_false
from mfpo.pairs.sentences import sentences
from mfpo.pairs.things import named_things


def checked(text, *false):
    """The text, in which the COCO classes `false` are not there, and all others are."""
    claims = [Claim(m.start, m.end, m.category, FALSE if m.category in false else TRUE) for m in mentions(text)]
    return Checked(text, tuple(claims))


@pytest.mark.parametrize(
    ("text", "false", "left"),
    [
        # A member of a list, at its end, in its middle, of two.
        ("There is a cup, a knife, and a fork.", ["fork"], "There is a cup and a knife."),
        ("There is a cup, a knife, and a fork.", ["knife"], "There is a cup and a fork."),
        ("He has a cup and a fork.", ["fork"], "He has a cup."),
        ("He has a cup and a fork.", ["cup"], "He has a fork."),
        # What hangs on a preposition or a participle.
        ("A man is sitting on a red bench.", ["bench"], "A man is sitting."),
        (
            "This shows a man sitting on a bench with a cup near him.",
            ["bench"],
            "This shows a man sitting with a cup near him.",
        ),
        ("This shows a man sitting on a bench with a cup on it.", ["bench"], "This shows a man."),
        ("A man stands there, holding a frisbee.", ["frisbee"], "A man stands there."),
        ("The image shows a cup placed on a table.", ["dining table"], "The image shows a cup."),
        ("On the table, there is a cup.", ["dining table"], "There is a cup."),
        # A subject, a verb's object, and a needed place cannot go: the sentence does, and what points back to it.
        ("A dog runs. A cat sleeps.", ["dog"], "A cat sleeps."),
        ("A man is holding a frisbee. A cat sleeps.", ["frisbee"], "A cat sleeps."),
        ("The cup is placed on the table. A cat sleeps.", ["dining table"], "A cat sleeps."),
        ("A dog runs. It is brown. A cat sleeps.", ["dog"], "A cat sleeps."),
        ("There are a cup and a fork. A cat sleeps.", ["fork"], "A cat sleeps."),
        ("A dog runs.", ["dog"], ""),
        # A list behind "including" keeps it, a comma between adjectives is no list.
        (
            "There are items, including a cup, a knife, and a fork.",
            ["cup"],
            "There are items, including a knife and a fork.",
        ),
        ("It has a long, sleek body and a car.", ["car"], "It has a long, sleek body."),
        # An "and" that joins other words, an article of both, a clause of the thing: the sentence goes.
        ("There is a lamp on a table and a picture. A cat sleeps.", ["dining table"], "A cat sleeps."),
        ("The cat has an orange and black tail. A dog sleeps.", ["orange"], "A dog sleeps."),
        ("It has a brown and orange coat with white legs and black fur. A dog sleeps.", ["orange"], "A dog sleeps."),
        ("There are two benches for people to sit and rest. A cat sleeps.", ["bench"], "A cat sleeps."),
        ("There is a spoon near a bowl that is full. A cat sleeps.", ["bowl"], "A cat sleeps."),
        # A list of four has its comma still, a list of two has none.
        ("There is a cup, a bowl, a knife, and a fork.", ["knife"], "There is a cup, a bowl, and a fork."),
        # What is left would be said of another thing: the sentence goes.
        ("These are two toys, a bear and a dog, in hats. A cat sleeps.", ["dog"], "A cat sleeps."),
        ("A train stands there, with two dogs, waiting for it. A cat sleeps.", ["dog"], "A cat sleeps."),
        ("It is nice, as the giraffe and the birds coexist in it. A cat sleeps.", ["bird"], "A cat sleeps."),
        ("He leans out from his chair and others look on. A cat sleeps.", ["chair"], "A cat sleeps."),
        ("There is a dog with a cup and glasses on. A cat sleeps.", ["dog"], "A cat sleeps."),
        ("There are items such as books (two) and mugs. A cat sleeps.", ["book"], "A cat sleeps."),
        ("There are two cups and a fork there, and it is warm. A cat sleeps.", ["cup"], "A cat sleeps."),
        ("The cup is resting on a table. A cat sleeps.", ["dining table"], "A cat sleeps."),
        # No member of a list.
        (
            "There are people in the area, some of them sitting on chairs and benches.",
            ["bench"],
            "There are people in the area, some of them sitting on chairs.",
        ),
        # Lines that break off after a comma or an "and".
        ("There are a dog and a cat,\nside by side.", ["dog"], "side by side."),
        ("There are a dog and a cat,\nside by side.", ["cat"], "side by side."),
        ("There are items on the table, including a fork,\nsuch as a cup.", ["fork"], "such as a cup."),
        ("There are items, including a fork, and\na cup.", ["fork"], "a cup."),
        ("There are items, including a cup, forks", ["cup"], "There are items, including forks"),
        # An item of a list goes with its mark, and one that stays keeps its own.
        ("1. There is a dog.\n2. There is a cat.\n3. A man sits.", ["cat"], "1. There is a dog.\n3. A man sits."),
        ("1. There is a dog.\n2. It is brown.\n3. A man sits.", ["dog"], "3. A man sits."),
        ("- A dog runs.\n- On the table, there is a cup.", ["dining table"], "- A dog runs.\n- There is a cup."),
        # A full stop that ends no sentence.
        ("At 5 p.m. a dog runs near it. A cat sleeps.", ["dog"], "A cat sleeps."),
        ("There is a pet, e.g. a dog. A cat sleeps.", ["dog"], "A cat sleeps."),
        # Nothing false: not a letter changes.
        ("A dog  runs.\n\nIt barks.", [], "A dog  runs.\n\nIt barks."),
    ],
)
def test_what_is_left(text, false, left):
    assert without_false(checked(text, *false)) == left


def test_a_sentence_that_goes_gives_way_to_a_true_one_of_another_answer():
    answer = checked("A man stands. A dog runs.", "dog")
    others = [checked("A man walks. It has a cat. A cat and a bird sleep. A kite flies.", "bird")]
    # Not what names nothing new, points back, or holds something false.
    assert without_false(answer, others) == "A man stands. A kite flies."


def test_things_that_are_named_not_denied_and_visible():
    text = "In the foreground, two old dogs and a coffee mug, but no cat, on the grass."
    assert named_things(text) == [(27, 31, "dog"), (38, 48, "coffee mug")]
    assert [text[start:end] for start, end, _ in named_things(text)] == ["dogs", "coffee mug"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There isn't any car.", []),
        ("There isn’t any car.", []),
        ("I'm sure they've seen the dog's.", ["dog"]),
        ("People in red ties and canoes.", ["person", "tie", "canoe"]),
    ],
)
def test_pieces_of_words_and_broken_singulars_are_no_things(text, expected):
    assert [name for _, _, name in named_things(text)] == expected


def test_an_item_of_a_list_is_replaced_behind_its_mark():
    assert without_false(checked("1. A dog runs.\n2. A cat sleeps.", "cat"), [checked("1. A kite flies.")]) == (
        "1. A dog runs.\n2. A kite flies."
    )


def test_a_claim_of_the_whole_answer_is_of_no_sentence_but_the_only_one():
    """So a judge's claim is placed whose words are not in the answer."""
    text = "A dog runs. A cat sleeps."
    whole = Claim(0, len(text), "a bird", FALSE)
    assert without_false(Checked(text, (whole,))) == text
    cat = Claim(12, 17, "a cat", FALSE)
    assert without_false(Checked(text, (whole, cat))) == "A dog runs."
    # What it says may be wrong in any sentence, so none of them stands in for another.
    true = (Claim(0, 5, "a dog", TRUE), Claim(12, 17, "a cat", TRUE))
    assert without_false(checked("A kite flies.", "kite"), [Checked(text, (whole, *true))]) == ""
    assert without_false(Checked("A dog runs.", (Claim(0, 11, "a bird", FALSE),))) == ""


ODD = """
dog cat cup forks table bench a an the two red and or with on in including such as near of is are there sitting holding
that while , , , . . ( ) 1. it
"""


def test_no_answer_is_too_odd():
    words = [*ODD.split(), "\n"]
    draw = random.Random(0)
    for number in range(3000):
        text = "There are " * (number % 2) + " ".join(draw.choices(words, k=draw.randint(1, 14)))
        claims = tuple(Claim(m.start, m.end, m.category, draw.choice([TRUE, FALSE])) for m in mentions(text))
        assert isinstance(without_false(Checked(text, claims)), str)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. A dog.\n2. A cat. 3) Birds", ["A dog.", "A cat.", "Birds"]),
        ("- A dog.\n* A cat.\n• Birds", ["A dog.", "A cat.", "Birds"]),
        ("There are 3. A dog is 2.5 metres high. 12.", ["There are 3.", "A dog is 2.5 metres high.", "12."]),
        ("At 5 p.m. near it. At 5 p.m. A cat.", ["At 5 p.m. near it.", "At 5 p.m.", "A cat."]),
        ("A dog, e.g. Mr. Smith's, vs. St. Peter's.", ["A dog, e.g. Mr. Smith's, vs. St. Peter's."]),
        ("Is it? No. Bus No. 5 of the U.S. Army.", ["Is it?", "No.", "Bus No. 5 of the U.S. Army."]),
        ("Cups, forks, etc. on it. Cups etc. A cat.", ["Cups, forks, etc. on it.", "Cups etc.", "A cat."]),
        ("It stands with Mr.\nA dog.", ["It stands with Mr.", "A dog."]),
        ("“A dog!” (A cat.) Birds", ["“A dog!”", "(A cat.)", "Birds"]),
        (" \n", []),
    ],
)
def test_where_sentences_end(text, expected):
    assert [text[start:end] for start, end in sentences(text)] == expected
