"""A text as sentences and tagged words with their places, for edits that leave whole sentences."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from mfpo.build.words import plain_apostrophes, tag_with_textblob
from mfpo.nouns import word_letters
from mfpo.objects import is_term

_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*(?:\s+|$)|\n+")
# Full stops that end no sentence, with the letter behind them: "Mr. A", "e.g. a", "No. 5"; "p.m. a", but not "p.m. A".
_NO_END = re.compile(
    r"\b(?:(?:(?i:mr|mrs|ms|dr|prof|st|mt|vs|e\.g|i\.e)|(?:[A-Z]\.)+[A-Z])\.[^\w\n]+\w|(?i:no)\.[^\w\n]+\d"
    r"|(?:(?:[a-z]\.)+[a-z]|etc|approx)\.[^\w\n]+[a-z])$"
)
# What an item of a list begins with.
_MARK = re.compile(r"\s*(?:\d{1,3}[.)]|[-*•])\s+(?=\S)")
# Verbs that a sentence of a description stands on, whatever the tagger makes of them.
_FINITE = frozenset(["is", "are", "was", "were", "has", "have", "had", "does", "do", "did", "can", "may", "might"])
_FINITE_TAGS = frozenset(["VBZ", "VBP", "MD"])


class Word(NamedTuple):
    """A word or mark at `text[start:end]`: `letter` as `nouns.word_letters` has it, `tag` of the Penn Treebank."""

    text: str
    start: int
    end: int
    tag: str
    letter: str

    @property
    def is_finite(self) -> bool:
        """Whether it is a verb that a sentence may stand on."""
        return self.text in _FINITE or (self.tag in _FINITE_TAGS and self.letter not in "JNS")


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each sentence, without the blanks behind it, and without the "1." or "-" of a list before it.

    >>> text = "1. A dog at 5 p.m. on Mr. A's mat. It runs!"
    >>> [text[start:end] for start, end in sentences(text)]
    ["A dog at 5 p.m. on Mr. A's mat.", 'It runs!']
    """
    start = _behind_mark(text, 0)
    for match in _END.finditer(text):
        if match.start() < start or _NO_END.search(text, start, match.end() + 1):
            continue
        end = match.start() + len(match.group().rstrip())
        if text[start:end].strip():
            yield start, end
        start = _behind_mark(text, match.end())
    if text[start:].strip():
        yield start, len(text)


def _behind_mark(text: str, start: int) -> int:
    mark = _MARK.match(text, start)
    return mark.end() if mark else start


def words(text: str) -> list[Word]:
    """The words and marks of a text; what the tagger writes otherwise than the text has no place and is left out."""
    text = plain_apostrophes(text)
    tagged = tag_with_textblob(text)
    letters = word_letters([word for word, _ in tagged], [tag for _, tag in tagged], is_term)
    tokens, place = [], 0
    for (word, tag), letter in zip(tagged, letters, strict=True):
        start = text.find(word, place)
        if start >= 0:
            place = start + len(word)
            tokens.append(Word(word.lower(), start, place, tag or "", letter))
    return tokens
