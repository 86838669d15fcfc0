"""Which of COCO's classes a caption names for CHAIR's own script, its quirks included (Rohrbach et al. 2018).

The script is utils/chair.py of github.com/LisaAnne/Hallucination; chair.py of
github.com/Maxlinn/CHAIR-metric-standalone is the same in Python 3 and adds recall.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nltk.tokenize import PunktSentenceTokenizer, word_tokenize
from textblob.en.inflect import singular_ie, singularize

from mfpo.coco_words import CATEGORIES
from mfpo.errors import MfpoError
from mfpo.evaluate.object_terms import PAIRS
from mfpo.files import check_json, read_field, read_json, read_text, read_texts, some

# Terms of two words that the script takes as one, each as itself. It cannot find "stove top oven", which has three, nor
# "sports ball", as its singular is "sport ball".
_DOUBLE = """motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light, fire hydrant,
stop sign, parking meter, suit case, sports ball, baseball bat, baseball glove, tennis racket, wine glass, hot dog,
cell phone, mobile phone, teddy bear, hair drier, potted plant, laptop computer, stove top oven"""
# "Glas" is the inflector's singular of "glass".
_DOUBLE_WORDS = {term: term for term in " ".join(_DOUBLE.split()).split(", ")} | PAIRS | {"wine glas": "wine glass"}

# Of the published table as `_fingerprint` reads it.
_PUBLISHED = "f972f9d92c93fe36d25e59287378360160e3af6016bf22386168ba56dc488256"
# The inflector that the script imports, pattern's, leaves these as they are: "collies" is no dog.
_LEFT = tuple(f"{word}s" for word in singular_ie)


@dataclass(frozen=True)
class OfficialTable:
    """The class of each word, and the word that two words stand for; `published` if it is that of the script."""

    classes: Mapping[str, str]
    double_words: Mapping[str, str]

    @property
    def published(self) -> bool:
        """Whether it is the table of the script."""
        facts = [sorted(self.classes.items()), sorted(self.double_words.items())]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest() == _PUBLISHED


def read_official_table(path: Path) -> OfficialTable:
    """Read CHAIR's table: synonyms.txt, a line a class, or JSON with `synonyms` and `double_words`.

    Raises MfpoError when it is neither, or when its classes are not COCO's 80.
    """
    text = read_text(path)
    check_json(text, path)
    words, double_words = _from_json(path) if text.lstrip().startswith("{") else (_from_lines(text), _DOUBLE_WORDS)
    # As in the script, a blank before a word is a part of it, so that " cheesecake" is never found.
    classes = {word: name for name, synonyms in words for word in synonyms if word}
    strange = sorted(set(classes.values()).symmetric_difference(CATEGORIES))
    if strange:
        raise MfpoError(
            f"{path}: {len(strange)} classes are missing or not COCO's ({some(strange)}); give CHAIR's "
            "synonyms.txt, with one class per line and commas between its words, or the same as JSON"
        )
    return OfficialTable(classes, double_words)


def official_classes(caption: str, table: OfficialTable) -> list[str]:
    """The classes that a caption names for the script, in order and with repetitions.

    >>> table = OfficialTable({"bus": "bus", "tie": "tie", "dog": "dog", "hot dog": "hot dog"}, {"hot dog": "hot dog"})
    >>> official_classes("A bus, two buses, ties and hot dogs.", table)
    ['bus', 'hot dog']
    """
    words = [_singular(word) for word in _tokens(caption.lower())]
    terms = []
    start = 0
    while start < len(words):
        double = table.double_words.get(" ".join(words[start : start + 2]))
        terms.append(double or words[start])
        start += 2 if double else 1
    if "toilet" in terms:
        terms = [term for term in terms if term != "seat"]
    return [table.classes[term] for term in terms if term in table.classes]


def _tokens(text: str) -> list[str]:
    """NLTK's `word_tokenize`, without its list of abbreviations, which holds no object of the table."""
    sentences = PunktSentenceTokenizer().tokenize(text)
    return [word for sentence in sentences for word in word_tokenize(sentence, preserve_line=True)]


@lru_cache(maxsize=100_000)
def _singular(word: str) -> str:
    """What pattern's `singularize` makes of a word in lower case; TextBlob's is a copy of an older one."""
    if word.endswith(_LEFT):
        return word
    # TextBlob makes "bus" of all that end so.
    return word[:-2] if word.endswith("buses") else str(singularize(word))


def _from_lines(text: str) -> list[tuple[str, list[str]]]:
    rows = [line.strip().split(", ") for line in text.splitlines()]
    return [(row[0], row) for row in rows]


def _from_json(path: Path) -> tuple[list[tuple[str, list[str]]], dict[str, str]]:
    content = read_json(path)
    try:
        synonyms, double_words = content["synonyms"], content["double_words"]
        words = [(name, list(read_texts(synonyms, name))) for name in synonyms]
        return words, {two: read_field(double_words, two) for two in double_words}
    except (KeyError, TypeError) as error:
        raise MfpoError(
            f"{path}: is not a table of synonyms ({repr(error)[:80]}); give CHAIR's synonyms.txt, or JSON with "
            "synonyms (class: words) and double_words"
        ) from None
