"""Paper 3.1: the things that an answer names, as nouns and noun phrases with their places in the text."""

import re
import sys
from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

from textblob.en import parser
from textblob.en.inflect import pluralize

from mfpo.build.settings import resolve_tagger
from mfpo.nouns import word_letters
from mfpo.objects import in_singular, is_term

# Gives each word of a text, in order, with its part of speech as the Penn Treebank writes it.
Tagger = Callable[[str], list[tuple[str, str]]]

# TextBlob reads its word lists when they are first used: two threads at once would see them half full.
for _words in (parser.lexicon, parser.lexicon.morphology, parser.lexicon.context, parser.lexicon.entities):
    len(_words)

# Letters; longer pieces without a blank are no words, but links, rulers and the like.
_LONGEST_CHUNK = 200
_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE_ENDS = frozenset([".", "!", "?", "..."])
_CLOSING = frozenset(["'", '"', "”", "’", ")"])
# Of one letter a word, so that the span of a match is the word positions. A plural ends it: in "birds perch" the second
# word is a verb that the tagger takes for a noun.
_NOUN_PHRASE = re.compile("J*(?:N*S|N+)")


def _heads(words: str) -> frozenset[str]:
    """`words`, and the singulars that TextBlob makes of them and their plurals ("trouser", "shelve")."""
    listed = words.split()
    return frozenset([*listed, *map(in_singular, listed), *(in_singular(pluralize(word)) for word in listed)])


# A phrase with such a head names nothing that a region could show.
_INVISIBLE = """
image picture photo photograph photography collage scene view viewpoint perspective background foreground surrounding
setting environment atmosphere mood nature composition arrangement contrast focus detail total side left right top
bottom middle center centre front back corner edge end part portion section area spot point level location position
direction angle distance proximity space herd flock group bunch couple pair slice piece row number variety mix range
series set sort kind type lot way time day hour moment today event session game match race tournament competition
contest performance show showcase display tour trip ride accident party celebration ceremony meeting conversation meal
activity action pose gesture trick stunt play sport tennis soccer football baseball basketball volleyball hockey golf
skiing snowboarding skateboarding surfing preparation progress purpose use work rest interest condition sense presence
appearance design color colour style size shape scale feature element addition example item object thing other one
someone something anyone anything everyone everything yes no answer question
"""
INVISIBLE = _heads(_INVISIBLE)
# What comes along with the things that an answer is about: places, what COCO-Stuff (Caesar et al. 2018) calls stuff
# outdoors and in a room's walls, materials, parts of a body, clothes, and words for a whole kind of things.
_SECONDARY = """
room bedroom bathroom restroom kitchen hall hallway corridor lobby office classroom library museum gallery studio
workshop warehouse garage house home church temple store shop mall market restaurant cafe zoo station terminal airport
stadium arena court rink gym track street road highway lane path alley alleyway intersection crosswalk sidewalk pavement
driveway platform runway tarmac parking square plaza courtyard patio porch balcony terrace deck city town village
neighborhood park garden yard field pasture meadow farm forest jungle savanna desert countryside wilderness landscape
slope hill hillside mountain beach shore shoreline coast harbor marina dock pier building skyscraper tower bridge fence
railing roof wall ceiling floor stair window door entrance mirror cabinet cupboard counter countertop shelf carpet rug
curtain ground dirt grass sand snow rock tree branch bush leaf flower sky cloud water sea ocean wave lake river pond
wood metal plastic concrete brick stone marble steel iron gold silver leather fabric cloth tile flooring
arm hand finger leg foot head face mouth nose ear eye neck shoulder hair beard body tail paw fur tattoo
clothes clothing attire outfit uniform shirt jacket coat sweater dress skirt pants trousers jeans shorts suit sock shoe
family crowd animal vehicle appliance furniture utensil dish food fruit vegetable equipment gear
structure decoration
"""
SECONDARY = _heads(_SECONDARY)


class Candidate(NamedTuple):
    """A thing that the text names: `text` as first written, its `nouns` in singular, the word `positions` from 0."""

    text: str
    nouns: tuple[str, ...]
    positions: tuple[int, ...]


def candidates(text: str, tagger: Tagger | None = None) -> list[Candidate]:
    """The nouns and noun phrases (adjectives, then nouns) of `text` that can name a visible thing, by first mention.

    >>> [candidate.text for candidate in candidates("A black cat sits in the middle of the mat.")]
    ['black cat', 'mat']
    """
    tagged = (tagger or tag_with_textblob)(plain_apostrophes(text))
    words = tuple([word for word, _ in tagged])
    letters = word_letters(words, [tag for _, tag in tagged], is_term)
    phrases: dict[tuple[str, ...], tuple[str, list[int]]] = {}
    for match in _NOUN_PHRASE.finditer(letters):
        start, end = match.span()
        phrase, nouns = _phrase(words[start:end], letters[start:end])
        if nouns[-1] in INVISIBLE and end - start > 1 and is_term(words[end - 2]):
            # "Pizza slices" and "the sink area" still show a pizza and a sink.
            phrase, nouns = _phrase(words[start : end - 1], f"{letters[start : end - 2]}N")
        if nouns[-1] not in INVISIBLE:
            phrases.setdefault(nouns, (phrase, []))[1].append(start)
    return [Candidate(phrase, nouns, tuple(positions)) for nouns, (phrase, positions) in phrases.items()]


def plain_apostrophes(text: str) -> str:
    """The text, equally long, with the only apostrophe by which a tagger knows "isn't" and "dog's"."""
    return text.replace("’", "'")


@lru_cache
def open_tagger(name: str) -> Tagger:
    """The tagger of that name. Raises SettingError as `resolve_tagger`."""
    name = resolve_tagger(name)
    if name == "textblob":
        return tag_with_textblob
    import spacy  # which the pipeline brings along

    pipeline = spacy.load(name, exclude=["parser", "ner", "lemmatizer", "senter"])
    pipeline.max_length = sys.maxsize  # the limit is there for the parser

    # spaCy does not promise that threads may share a pipeline.
    lock = Lock()

    def tag(text: str) -> list[tuple[str, str]]:
        with lock:
            return [(token.text, token.tag_) for token in pipeline(text) if not token.is_space]

    return tag


def tag_with_textblob(text: str) -> list[tuple[str, str]]:
    """The words and tags of TextBlob's bundled tagger, which takes each word alone, so that each is tagged once."""
    tagged: list[tuple[str, str]] = []
    for paragraph in _PARAGRAPH.split(text):
        starts_sentence = True
        for chunk in paragraph.split():
            words, starts_sentence = _tag_chunk(chunk, starts_sentence)
            tagged += words
    return tagged


@lru_cache(maxsize=100_000)
def _tag_chunk(chunk: str, starts_sentence: bool) -> tuple[tuple[tuple[str, str], ...], bool]:
    """The words and tags in a piece of text without blanks, and whether a sentence starts after it."""
    tagged = []
    # Of letters alone there is nothing to split, and the splitter takes most of the time.
    words = [chunk] if chunk.isalpha() or len(chunk) > _LONGEST_CHUNK else " ".join(parser.find_tokens(chunk)).split()
    for word in words:
        # The tagger looks up a sentence's first word in small letters too.
        sentence = [word] if starts_sentence else ["the", word]
        tagged.append((word, parser.find_tags(sentence)[-1][1]))
        starts_sentence = word in _SENTENCE_ENDS or (starts_sentence and word in _CLOSING)
    return tuple(tagged), starts_sentence


@lru_cache(maxsize=100_000)
def _phrase(words: tuple[str, ...], letters: str) -> tuple[str, tuple[str, ...]]:
    """A noun phrase in small letters, and its nouns in singular."""
    small = [word.lower() for word in words]
    nouns = [
        in_singular(word) if letter == "S" else word
        for word, letter in zip(small, letters, strict=True)
        if letter != "J"
    ]
    return " ".join(small), tuple(nouns)
