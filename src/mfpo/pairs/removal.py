"""The smallest part of a sentence that goes with a thing, so that what is left is a whole sentence."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from mfpo.pairs.sentences import Word, words

# What a thing may hang on, and then goes with it.
_PREPOSITIONS = """
with near beside behind by along alongside including at on in under above around against inside between among outside
below beneath across onto into over atop like
"""
_COMPOUNDS = (("in", "front", "of"), ("on", "top", "of"), ("next", "to"), ("such", "as"), ("close", "to"))
_BE = "is are was were be been being"
# With a form of be before them these are no whole sentence without a place: "is placed on the table".
_NEED_PLACE = """
placed located situated positioned set filled covered made surrounded lined equipped accompanied adorned topped
decorated attached connected used composed mounted resting leaning perched
"""
_BEFORE_NOUN = "other few several some many more another various multiple different a an the two three"
_QUANTITIES = "group pair bunch couple lot number row slice piece set variety plate bowl cup glass"
PREPOSITIONS, BE, NEED_PLACE = (frozenset(some.split()) for some in (_PREPOSITIONS, _BE, _NEED_PLACE))
BEFORE_NOUN, QUANTITIES = frozenset(_BEFORE_NOUN.split()), frozenset(_QUANTITIES.split())
_ENDS = frozenset([",", ";", ":", ".", "!", "?", "-", "–", "—", "(", ")"])
_JOINS = frozenset(["and", "or"])
_ARTICLES = frozenset(["a", "an"])
_CLAUSE = frozenset(["while", "which", "who", "that", "where", "as", "but", "when"])
_OF_THINGS = frozenset(["that", "which", "whose"])
_PERSONS = frozenset(["him", "her", "them", "his", "their"])
# Lists that hang together, or are denied.
_HELD = frozenset(["either", "both", "between", "neither", "nor", "no", "not"])
_DANGLING = re.compile(
    r"(?:^|[\s,])(?:an?|the|and|or|with|of|in|on|at|to|near|including|such as|is|are|by|,)\s*[.!?]*$", re.IGNORECASE
)
# "There are a cup", where a fork has gone.
_DISAGREES = re.compile(
    r"\b(?:are|were)(?: also)? (?:an?|one)\b(?! (?:few|lot|couple|number|variety|pair|group))", re.IGNORECASE
)


class Cut(NamedTuple):
    """Characters `start` to `end` that give way to `text`."""

    start: int
    end: int
    text: str = ""


def remove(sentence: str, start: int, end: int) -> list[Cut] | None:
    """The cuts that take the thing at `sentence[start:end]` out, last one first; None where no rule leaves a sentence.

    A member of a list goes with its comma or "and", a thing behind a preposition or a participle with these. A subject
    and a verb's only object cannot go.
    """
    tokens = words(sentence)
    first = next((i for i, word in enumerate(tokens) if word.end > start), None)
    last = next((i for i in reversed(range(len(tokens))) if tokens[i].start < end), None)
    if first is None or last is None or last < first:
        return None
    first = _phrase_start(tokens, first)
    stop = _stop(tokens, last + 1)
    if any(word.text in _OF_THINGS or word.text == "(" or word.tag == "VB" for word in tokens[stop : stop + 1]):
        return None  # "a bowl that is full", "a bowl (two)": this would be left to another thing
    is_object = any(word.is_finite for word in tokens[:first])
    for cuts in (
        _place_alone(tokens, first, last, stop),
        _from_list(tokens, first, stop) if is_object else None,
        _with_opener(tokens, first, stop),
    ):
        if cuts and _is_whole(apply(sentence, cuts)):
            return cuts
    return None


def apply(text: str, cuts: Sequence[Cut]) -> str:
    """`text` after cuts that are in order from its end."""
    for cut in cuts:
        text = text[: cut.start] + cut.text + text[cut.end :]
    return text


def _phrase_start(tokens: Sequence[Word], first: int) -> int:
    """Where the noun phrase begins whose noun is `tokens[first]`: "a pair of old skis"."""
    while first:
        word = tokens[first - 1]
        is_quantity = word.text == "of" and first > 1 and tokens[first - 2].text.rstrip("s") in QUANTITIES
        if is_quantity:
            first -= 2
        elif (word.letter in "JNSDH#Q" and word.text not in PREPOSITIONS) or word.text in BEFORE_NOUN:
            first -= 1
        else:
            break
    return first


def _stop(tokens: Sequence[Word], place: int) -> int:
    """Where the phrase and what describes it end: at a mark, a joining word, another clause, or its verb."""
    for number in range(place, len(tokens)):
        word = tokens[number]
        is_verb = word.is_finite or (word.tag == "VB" and word.letter not in "JNS" and tokens[number - 1].tag != "TO")
        if word.text in _ENDS or word.text in _JOINS or word.text in _CLAUSE or is_verb:
            return number
    return len(tokens)


def _from_list(tokens: Sequence[Word], first: int, stop: int) -> list[Cut] | None:
    """The cuts of a member of a list of things behind the verb."""
    before = tokens[first - 1].text
    after = tokens[stop].text if stop < len(tokens) else "."
    if _HELD.intersection(word.text for word in tokens[max(0, first - 8) : first]):
        return None
    if before in _JOINS and after in _ENDS and tokens[first - 2].letter in "NSC.":
        # "A cup, a knife, and [a fork]" becomes "a cup and a knife".
        end = first - 2 if tokens[first - 2].text == "," else first - 1
        comma = _comma_before(tokens, end)
        is_list = _is_member(tokens, comma, end) and all(word.tag != "VBG" for word in tokens[comma:end])
        if is_list and after == "," and tokens[comma - 1].letter == "S" and tokens[comma + 1].text in _ARTICLES:
            return None  # "two animals, a bear and a dog, in hats": these are the two
        has_verb = any(word.is_finite for word in tokens[:comma])
        joined = [Cut(tokens[comma].start, tokens[comma].end, f" {before}")] if is_list and has_verb else []
        return [Cut(tokens[end - 1].end, tokens[stop - 1].end), *joined]
    if before == "," and tokens[first - 2].letter in "NS" and after in (",", "and", "or"):
        opens = tokens[_phrase_start(tokens, first - 2) - 1]
        is_two = opens.is_finite or opens.text in ("with", "of", "as", "including")  # no list of three or more
        last = stop if is_two and _has_last(tokens, stop) else stop - 1
        return [Cut(tokens[first - 1].start, tokens[last].end)]
    if after in _JOINS and stop + 1 < len(tokens) and before not in (",", *_JOINS) and _goes_on(tokens, first, stop):
        return [Cut(tokens[first].start, tokens[stop + 1].start)]
    if before == "including" and after == "," and stop + 1 < len(tokens):
        rest = stop + 1 + (tokens[stop + 1].text in _JOINS)  # "including a cup, and a fork"
        if not _is_thing(tokens, rest):
            return None
        comma = _stop(tokens, rest)
        joined = [Cut(tokens[comma].start, tokens[comma].end)] if _has_last(tokens, comma) else []
        return [*joined, Cut(tokens[first].start, tokens[rest].start)]
    return None


def _comma_before(tokens: Sequence[Word], place: int) -> int:
    return next((i for i in reversed(range(place)) if tokens[i].text == ","), 0)


def _is_member(tokens: Sequence[Word], comma: int, end: int) -> bool:
    """Whether the words between a comma and `end` are a member of a list."""
    return tokens[comma - 1].letter in "NS" and _is_thing(tokens, comma + 1) and _stop(tokens, comma + 1) == end


def _has_last(tokens: Sequence[Word], comma: int) -> bool:
    """Whether a list ends with ", and a fork", whose comma only a list of three needs."""
    joins = comma + 2 < len(tokens) and tokens[comma].text == "," and tokens[comma + 1].text in _JOINS
    return joins and _is_thing(tokens, comma + 2)


def _goes_on(tokens: Sequence[Word], first: int, stop: int) -> bool:
    """Whether the "and" at `stop` joins a thing that may take the place of the phrase from `first` on."""
    after = tokens[stop + 1]
    if tokens[stop - 1].letter == "J" or any(
        word.tag == "TO" or word.text in PREPOSITIONS for word in tokens[first:stop]
    ):
        return False  # "a cup with a red and blue label", "benches to sit and rest", "a cup with tea and milk"
    if after.text in _ARTICLES and tokens[first - 1].text in PREPOSITIONS and tokens[first - 1].text != "including":
        return False  # "a lamp on a table and a picture": it may join the picture to the lamp
    head = next((word.letter for word in tokens[stop + 1 :] if word.letter in "NS."), ".")
    if head == "." or after.text == "others":
        return False  # "one in an orange shirt and the other in blue", "some on their seats and others beside them"
    if tokens[first].text in _ARTICLES and after.letter in "JN" and head == "N":
        return False  # "an orange and yellow umbrella", "a cup and fork": the article is of both
    return _is_thing(tokens, stop + 1)


def _is_thing(tokens: Sequence[Word], place: int) -> bool:
    """Whether a noun phrase without a verb of its own stands there."""
    if place == len(tokens):  # the sentence breaks off after a comma or an "and"
        return False
    stop = _stop(tokens, place)
    starts = tokens[place].letter in "DJNS#H" or tokens[place].text in BEFORE_NOUN
    return starts and (stop == len(tokens) or not tokens[stop].is_finite)


def _with_opener(tokens: Sequence[Word], first: int, stop: int) -> list[Cut] | None:
    """The cut of a phrase with the preposition or the participle before it: "on a bench", "holding a cup"."""
    opener = _opener(tokens, first)
    if opener is None:
        return None
    if stop < len(tokens) and tokens[stop].text in _JOINS:
        return None  # a list, of which only this member may go
    if tokens[first - 1].text == "including" and stop < len(tokens) and tokens[stop].text == ",":
        return None  # a list goes on
    if opener == 0:  # "On the table, there is a cup."
        if stop + 1 >= len(tokens) or tokens[stop].text != ",":
            return None
        after = tokens[stop + 1]
        return [Cut(0, after.start + 1, after.text[0].upper())]
    left = tokens[opener - 1]
    if left.letter in "NS" or (left.tag == "VBG" and opener > 1 and tokens[opener - 2].text in BE):
        return [Cut(left.end, tokens[stop - 1].end)]
    if left.text == "," and (stop == len(tokens) or tokens[stop].text in _ENDS):
        tag = next((word.tag for word in tokens[stop + 1 :] if word.tag != "RB"), "")
        if tag in ("VBG", "VBN"):
            return None  # "a train, with two people, waiting for it": the train would wait
        return [Cut(left.start, tokens[stop - 1].end)]
    return None


def _place_alone(tokens: Sequence[Word], first: int, last: int, stop: int) -> list[Cut] | None:
    """The cut of the place in "a man sitting on a bench with a cup before him", where the cup is the man's."""
    after = [word.text for word in tokens[last + 1 : stop]]
    place = _preposition(tokens, first)
    if not place or after[:1] != ["with"] or not _PERSONS.intersection(after):
        return None
    left = tokens[place - 1]
    return [Cut(left.end, tokens[last].end)] if left.letter in "NS" or left.tag == "VBG" else None


def _preposition(tokens: Sequence[Word], first: int) -> int | None:
    """The first word of the preposition before the phrase at `first`."""
    for compound in _COMPOUNDS:
        if tuple(word.text for word in tokens[max(0, first - len(compound)) : first]) == compound:
            return first - len(compound)
    return first - 1 if first and tokens[first - 1].text in PREPOSITIONS else None


def _opener(tokens: Sequence[Word], first: int) -> int | None:
    """The first word of the preposition, or of the participle, that the phrase at `first` hangs on."""
    place = _preposition(tokens, first)
    if place is None and first and tokens[first - 1].tag == "VBG":
        return None if first > 1 and tokens[first - 2].text in BE else first - 1
    if place is None:
        return None
    # "A cup placed on the table" is a cup, and "a man sitting on a bench" a man; "is placed" needs its place.
    while place and (tokens[place - 1].tag in ("VBG", "RB") or tokens[place - 1].text in NEED_PLACE):
        is_verb = place > 1 and tokens[place - 2].text in BE
        if is_verb:
            return None if tokens[place - 1].text in NEED_PLACE else place
        place -= 1
    return place


def _is_whole(sentence: str) -> bool:
    """Whether it has a verb, and no word that waits for another."""
    tokens = words(sentence)
    disagrees = _DISAGREES.search(sentence)
    is_alone = disagrees and not _goes_with_more([word for word in tokens if word.start >= disagrees.end()])
    return any(word.is_finite for word in tokens) and not is_alone and not _DANGLING.search(sentence)


def _goes_with_more(tokens: Sequence[Word]) -> bool:
    """Whether the thing that stands there is the first of several."""
    stop = _stop(tokens, 0)
    marks = [word.text for word in tokens[stop : stop + 1]]
    is_thing = any(word.letter in "DJNS#" for word in tokens[stop + 1 : stop + 2])
    return bool(_JOINS.intersection(marks)) or (marks == [","] and is_thing)
