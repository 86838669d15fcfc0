"""Which terms of a table of synonyms stand in a judge's list or in a text; each term stands for a COCO class."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from textblob.en import tag

from mfpo.coco_words import ANIMALS, CATEGORIES
from mfpo.errors import MfpoError, first_line
from mfpo.files import read_text, some
from mfpo.nouns import word_letters
from mfpo.objects import TOKEN, join_pairs, singular, singulars

OFFICIAL_TAGGER = "en_core_web_trf"
# Of the table in RLHF-V's script, without its outer blanks.
_OFFICIAL_TABLE = "2d737a47045e2b0be2a47a2ce843a28afab97cb92218d83b6b3c633cfb86f398"
# The official double words besides the table's own, and the word that each stands for.
PAIRS = (
    {"home plate": "home plate", "train track": "train track", "bow tie": "tie", "toilet seat": "toilet"}
    | {f"{age} {animal}": animal for age in ("baby", "adult") for animal in (*ANIMALS, "animal", "cub")}
    | {"passenger jet": "jet", "passenger train": "train"}
)

# A text's words, each as its lemma, with whether it is a noun.
Tagger = Callable[[str], list[tuple[str, bool]]]


@dataclass(frozen=True)
class Table:
    """The COCO class of each term, and the terms that two words stand for."""

    classes: Mapping[str, str]
    pairs: Mapping[str, str]
    official: bool

    @cached_property
    def _singulars(self) -> dict[str, str]:
        return singulars(word for term in self.classes for word in term.split())

    def singular(self, word: str) -> str:
        """`word` in lower case and singular; a word of the table stays ("bus", "glass")."""
        return singular(word, self._singulars, self.classes)

    def has(self, words: str) -> bool:
        """Whether `words`, in singular or plural, are a term of the table."""
        return " ".join(map(self.singular, words.split())) in self.classes


def load_table(path: Path | None = None) -> Table:
    """Read a table of synonyms, by default our own: a line a class, with its words after it.

    Raises MfpoError when the classes are not COCO's.
    """
    text = read_text(path) if path else files("mfpo").joinpath("coco_words.txt").read_text(encoding="utf-8")
    lines = [re.split(r"\s*[:,]\s*", line.strip()) for line in text.splitlines() if not line.startswith("#")]
    # In our own table "none" holds words of two, of which no single one counts; PAIRS has them.
    classes = {term: line[0] for line in lines if line[0] != "none" for term in line if term}
    strange = sorted(set(classes.values()).symmetric_difference(CATEGORIES))
    if strange:
        raise MfpoError(
            f"{path}: {len(strange)} classes are missing or not COCO's ({some(strange)}); "
            "give one class per line: the class, then its synonyms, separated by commas"
        )
    return Table(
        classes,
        {term: term for term in classes if " " in term} | PAIRS,
        hashlib.sha256(text.strip().encode()).hexdigest() == _OFFICIAL_TABLE,
    )


def terms_of(names: Sequence[str], table: Table, tagger: Tagger) -> list[str]:
    """The terms that the judge's names stand for, each once: their double words, or else their runs of nouns."""
    terms: list[str] = []
    for name in names:
        tagged = tagger(f"a {name}")
        lemmas = [lemma for lemma, _ in tagged]
        double = [term for term, is_double in _merge(lemmas, table.pairs) if is_double]
        terms += double or _noun_runs(tagged)
    return list(dict.fromkeys(terms))


def _noun_runs(tagged: Sequence[tuple[str, bool]]) -> list[str]:
    marked = " ".join(lemma if is_noun else "|" for lemma, is_noun in tagged)
    return [run.strip() for run in marked.split("|") if run.strip()]


def terms_in(text: str, table: Table) -> list[str]:
    """The terms of a text, each mention, as the official script reads COCO's reference captions."""
    words = [table.singular(token) for token in TOKEN.findall(text)]
    return [term for term, _ in _merge(words, table.pairs)]


def _merge(words: Sequence[str], pairs: Mapping[str, str]) -> list[tuple[str, bool]]:
    """The words, two that are a pair as the term that it stands for, each with whether it was one."""
    spans = [words[start:end] for start, end in join_pairs(words, pairs)]
    return [(pairs[" ".join(span)], True) if len(span) == 2 else (span[0], False) for span in spans]


def open_tagger(name: str, table: Table) -> Tagger:
    """The tagger of that name; what the official one says stands. Raises MfpoError when it is not installed."""
    if name == "textblob":
        return lambda text: _nouns_marked(tag(text), table)
    try:
        import spacy

        pipeline = spacy.load(name)
    except (ImportError, OSError) as error:
        raise MfpoError(
            f"tagger is {name!r}, which cannot be loaded ({first_line(error)}); give textblob or an "
            f"installed spaCy pipeline, officially {OFFICIAL_TAGGER}"
        ) from None
    if name == OFFICIAL_TAGGER:
        return lambda text: [(token.lemma_, token.tag_ in ("NN", "NNS", "NNP", "NNPS")) for token in pipeline(text)]
    return lambda text: _nouns_marked([(token.text, token.tag_) for token in pipeline(text)], table)


def _nouns_marked(tagged: Sequence[tuple[str, str]], table: Table) -> list[tuple[str, bool]]:
    """The words of a text with their parts of speech as lemmas, each word of the table a noun where one can stand."""
    words, parts = zip(*tagged, strict=True)
    are_nouns = [letter in "NS" for letter in word_letters(words, parts, table.has)]
    return [(table.singular(word) if noun else word.lower(), noun) for word, noun in zip(words, are_nouns, strict=True)]
