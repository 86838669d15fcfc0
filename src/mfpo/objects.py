"""Which of COCO's 80 classes a text names, by the method of CHAIR (Rohrbach et al. 2018, section 2.1)."""

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from textblob.en.inflect import singularize

# CHAIR's animals and vehicles: the word before one of them says its age or use, and is no person.
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
_VEHICLES = ("car", "airplane", "bus", "train", "truck", "boat")
_BEFORE = {"baby": ANIMALS, "adult": ANIMALS, "passenger": _VEHICLES}

WORD = re.compile(r"[^\W\d_]+(?:[-/][^\W\d_]+)*")
# A word, or a mark between two words, which then are no term together.
TOKEN = re.compile(rf"{WORD.pattern}|\S")


@dataclass(frozen=True)
class Mention:
    """`text[start:end]` names an object of the COCO class `category`."""

    category: str
    start: int
    end: int


def _read_words() -> tuple[tuple[str, ...], dict[str, str]]:
    """The classes in COCO's order, and each term's class; terms that name no class have "none"."""
    lines = files("mfpo").joinpath("coco_words.txt").read_text(encoding="utf-8").splitlines()
    classes = [line.partition(":") for line in lines if not line.startswith("#")]
    terms = {word.strip(): name for name, _, words in classes for word in [name, *words.split(",")] if word.strip()}
    for before, names in _BEFORE.items():
        terms |= {f"{before} {word}": name for word, name in list(terms.items()) if name in names and " " not in word}
    return tuple(dict.fromkeys(name for name, _, _ in classes if name != "none")), terms


CATEGORIES, _TERMS = _read_words()
_PAIRS = {term for term in _TERMS if " " in term}
_PARTS = {part for term in _TERMS for part in term.split()}


def mentions(text: str) -> list[Mention]:
    """Every COCO object that `text` names, in order and with repetitions, in singular or plural.

    A term of two words goes before its parts ("hot dog" is no dog, "baby elephant" no person). As in CHAIR, a "seat"
    is no chair where the text also names a toilet.

    >>> mentions("Two buses pass a hot dog stand.")
    [Mention(category='bus', start=4, end=9), Mention(category='hot dog', start=17, end=24)]
    """
    found = [mention for mention in _terms(text) if mention.category != "none"]
    if any(mention.category == "toilet" for mention in found):
        return [m for m in found if _singular(text[m.start : m.end]) != "seat"]
    return found


def category_of(phrase: str) -> str | None:
    """The COCO class that a noun phrase names: that of its last object, since the head of an English phrase is last.

    >>> category_of("the red double-decker buses")
    'bus'
    """
    found = mentions(phrase)
    return found[-1].category if found else None


def join_pairs(words: Sequence[str], pairs: Container[str]) -> Iterator[tuple[int, int]]:
    """Start and end of each word, and of each two that are one of `pairs`.

    >>> list(join_pairs(["a", "hot", "dog", "stand"], {"hot dog"}))
    [(0, 1), (1, 3), (3, 4)]
    """
    start = 0
    while start < len(words):
        is_pair = start + 1 < len(words) and f"{words[start]} {words[start + 1]}" in pairs
        end = start + (2 if is_pair else 1)
        yield start, end
        start = end


def _terms(text: str) -> Iterator[Mention]:
    """The terms of the table in `text`, those of two words first, "none" included."""
    tokens = list(TOKEN.finditer(text))
    words = [_singular(token.group()) for token in tokens]
    for start, end in join_pairs(words, _PAIRS):
        term = " ".join(words[start:end])
        if term in _TERMS:
            yield Mention(_TERMS[term], tokens[start].start(), tokens[end - 1].end())


@lru_cache(maxsize=100_000)
def _singular(word: str) -> str:
    """`word` in lower case and singular; "hot-dog" becomes "hot dog" where the table has that term."""
    word = word.lower()
    # The inflector makes "bu" of "bus" and "glas" of "glass", so a known word stays as it is.
    if word in _PARTS:
        return word
    singular = singularize(word)
    spaced = singular.replace("-", " ")
    return spaced if spaced in _TERMS else singular
