"""Which of COCO's 80 classes a text names, by the method of CHAIR (Rohrbach et al. 2018, section 2.1)."""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from textblob.en.inflect import pluralize, singularize

from mfpo.coco_words import TERMS

# Unicode has two hyphens besides ASCII's, and a soft one, which is no character of the word.
_HYPHENS, _SOFT_HYPHEN = "-\u2010\u2011", "\u00ad"
WORD = re.compile(rf"[^\W\d_]+(?:[{_HYPHENS}{_SOFT_HYPHEN}/_][^\W\d_]+)*")
_HYPHEN = re.compile(f"[{_HYPHENS}_]")
# A word, or a mark between two words, which then are no term together.
TOKEN = re.compile(rf"{WORD.pattern}|\S")

# What denies the things that follow it, up to a word that begins another phrase.
_NOT = r"(?:not|never|hardly|\w+n['’]t)(?:\s+(?!only\b)\w+){0,3}?\s+(?:any|an?)"
_DENIAL = re.compile(
    rf"\b(?:no|(?:without|neither|nor)(?:\s+an?)?|{_NOT})(?:\s+(?:signs?|traces?)\s+of)?(?:\s+any)?\s+([\w\s,'’/-]*)$",
    re.IGNORECASE,
)
_OTHER_PHRASE = re.compile(
    r"\b(?:an?|the|this|that|these|those|some|its?|his|her|their|there|is|are|was|were|be|being|has|have|with|in|on|at|of|to"
    r"|from|by|for|near|but|while|as|which|who|one|two|three|several|many)\b",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"\s+(?:(?:is|are|was|were)(?:\s+not|n['’]t)|can(?:not|\s+not|['’]t)\s+be)\s+(?:visible|present|seen|shown|there)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?:;\n]")


@dataclass(frozen=True)
class Mention:
    """`text[start:end]` names an object of the COCO class `category`."""

    category: str
    start: int
    end: int


def singulars(words: Iterable[str]) -> dict[str, str]:
    """Each of `words`, and its plurals, with the word itself; a word stays one though it looks like a plural ("bus").

    >>> forms = singulars(["bus", "tie", "man"])
    >>> forms["bus"], forms["buses"], forms["ties"], forms["men"]
    ('bus', 'bus', 'tie', 'man')
    """
    known = dict.fromkeys(words)
    plurals = {form: word for word in known for form in (f"{word}s", pluralize(word))}
    # The inflector's singular goes first: two words may have one plural ("knife" and a table's wrong "knive").
    right = {form: single for form in plurals if (single := singularize(form)) in known}
    return plurals | right | {word: word for word in known}


def singular(word: str, forms: Mapping[str, str], terms: Container[str]) -> str:
    """`word` in lower case and singular, where `forms` are the `singulars` of the words of `terms`.

    >>> singular("Hot-Dogs", singulars(["hot", "dog"]), {"hot dog"}), singular("double-deckers", {}, set())
    ('hot dog', 'double-decker')
    """
    small = word.lower().replace(_SOFT_HYPHEN, "")
    parts = [forms.get(part) or str(singularize(part)) for part in _HYPHEN.split(small)]
    spaced = " ".join(parts)
    return spaced if spaced in terms else "-".join(parts)


_PAIRS = {term for term in TERMS if " " in term}
# The inflector makes "bu" of "bus", "glas" of "glass" and "ty" of "ties", so it is asked only about other words.
_SINGULARS = singulars(part for term in TERMS for part in term.split())


@lru_cache(maxsize=100_000)
def in_singular(word: str) -> str:
    """`word` in lower case and singular: by the table where it has the word, also for a plural that is a term itself.

    >>> in_singular("Ties"), in_singular("people"), in_singular("trees")
    ('tie', 'person', 'tree')
    """
    form = _singular(word)
    single = str(singularize(form))
    return single if single in _SINGULARS else form


def mentions(text: str) -> list[Mention]:
    """Every COCO object that `text` names, in order and with repetitions, in singular or plural.

    A term of two words goes before its parts ("hot dog" is no dog, "baby elephant" no person). As in CHAIR, a "seat"
    is no chair where the text also has the word "toilet".

    >>> mentions("Two buses pass a hot dog stand.")
    [Mention(category='bus', start=4, end=9), Mention(category='hot dog', start=17, end=24)]
    """
    terms = [(term, start, end) for term, start, end in _terms(text) if TERMS[term] != "none"]
    has_toilet = any(term.startswith("toilet") for term, _, _ in terms)
    return [Mention(TERMS[term], start, end) for term, start, end in terms if not (term == "seat" and has_toilet)]


def is_denied(text: str, start: int, end: int) -> bool:
    """Whether `text` says of the thing named by `text[start:end]` that it is not there.

    >>> [is_denied(text, 7, 10) for text in ("No cat/dog.", "There's dog", "With a dog", "Not a  dog")]
    [True, False, False, True]
    """
    before = _SENTENCE_END.split(text[:start])[-1]
    denial = _DENIAL.search(before)
    return bool(denial and not _OTHER_PHRASE.search(denial[1])) or bool(_DENIED_AFTER.match(text, end))


def category_of(phrase: str) -> str | None:
    """The COCO class that a noun phrase names: that of its last object, since the head of an English phrase is last.

    >>> category_of("the red double-decker buses")
    'bus'
    """
    objects = mentions(phrase)
    return objects[-1].category if objects else None


def is_term(words: str) -> bool:
    """Whether `words`, in singular or plural, are a term that names a COCO object, and not just hold one.

    >>> is_term("bears"), is_term("stop signs"), is_term("red bus")
    (True, True, False)
    """
    parts = [_SINGULARS.get(part, "") for part in words.lower().split()]
    return TERMS.get(" ".join(parts), "none") != "none"


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


def _terms(text: str) -> Iterator[tuple[str, int, int]]:
    """The terms of the table in `text` with their places, those of two words first, "none" included."""
    tokens = list(TOKEN.finditer(text))
    words = [_singular(token.group()) for token in tokens]
    for start, end in join_pairs(words, _PAIRS):
        term = " ".join(words[start:end])
        if term in TERMS:
            yield term, tokens[start].start(), tokens[end - 1].end()


@lru_cache(maxsize=100_000)
def _singular(word: str) -> str:
    return singular(word, _SINGULARS, TERMS)
