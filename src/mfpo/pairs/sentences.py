"""A text as sentences and tagged words with their places, for edits that leave whole sentences."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from mfpo.build.words import tag_with_textblob
from mfpo.nouns import word_letters
from mfpo.objects import is_term

_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*(?:\s+|$)|\n+")
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
    """Start and end of each sentence, without the blanks behind it.

    >>> text = "A dog. It runs!"
    >>> [text[start:end] for start, end in sentences(text)]
    ['A dog.', 'It runs!']
    """
    start = 0
    for match in _END.finditer(text):
        end = match.start() + len(match.group().rstrip())
        if text[start:end].strip():
            yield start, end
        start = match.end()
    if text[start:].strip():
        yield start, len(text)


def words(text: str) -> list[Word]:
    """The words and marks of a text; what the tagger writes otherwise than the text has no place and is left out."""
    tagged = tag_with_textblob(text)
    letters = word_letters([word for word, _ in tagged], [tag for _, tag in tagged], is_term)
    tokens, place = [], 0
    for (word, tag), letter in zip(tagged, letters, strict=True):
        start = text.find(word, place)
        if start >= 0:
            place = start + len(word)
            tokens.append(Word(word.lower(), start, place, tag or "", letter))
    return tokens
