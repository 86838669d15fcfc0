"""Which words of a tagged text are nouns.

A tagger that sees no context takes "two bears" for a verb and "an orange" for an adjective. So for words that name
objects, their place in the sentence decides, not the tag.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

# Parts of speech as in the Penn Treebank, a letter each; small letters are undecided. An object's name is o when it is
# tagged as an adjective, v or w (in -s) as a verb. Of other words, b is a verb's base form, g its -ing form.
_LETTERS = {
    "JJ": "J", "JJR": "J", "JJS": "J", "NN": "N", "NNP": "N", "NNS": "S", "NNPS": "S", "VB": "b", "VBG": "g",
    "DT": "D", "PRP$": "H", "TO": "T", "MD": "P", "PRP": "P", "WP": "P", "WDT": "P", "CC": "C", ",": "C", "CD": "#",
}  # fmt: skip
_OBJECT_LETTERS = {"JJ": "o", "VB": "v", "VBP": "v", "VBZ": "w"}
_WORDS = dict.fromkeys(("that", "which", "who"), "P") | dict.fromkeys(("is", "are", "was", "were", "be"), "B")

_DECISIONS = (
    # An adjective after all: "an orange and white cat"; "the bus is bright orange", "it is painted orange".
    (re.compile("o(?=(?:C{0,2}[Jo]){0,9}([NS]|[vw](?![DH])))"), "J"),
    (re.compile("(B[.]?(?:[Jo]C{0,2}){0,9})o"), r"\1J"),
    # A verb after all: "to bear", "it sinks", "trees that bear fruit"; "the sign bears a name".
    (re.compile("(?<=[PT])v|(?<=P)w|(?<=[NSov])[vw](?=[DH])"), "."),
    # Any word after an article or an adjective is no verb: "a stop sign", "a white double sink".
    (re.compile("(?<=[DJ])b|[ov]"), "N"),
    (re.compile("w"), "S"),
)


def word_letters(words: Sequence[str], tags: Sequence[str], is_object: Callable[[str], bool]) -> str:
    """A letter for each word: J an adjective, N a noun, S a plural noun, any other letter none of these.

    `tags` are those of the Penn Treebank; `is_object` says whether one or two words are an object's name.

    >>> words, tags = ["two", "bears", "in", "a", "sink"], ["CD", "VBZ", "IN", "DT", "VB"]
    >>> word_letters(words, tags, is_object={"bears", "sink"}.__contains__)
    '#S.DN'
    """
    letters = [_letter(word, tag, is_object) for word, tag in zip(words, tags, strict=True)]
    for index, letter in enumerate(letters[:-1]):
        # "With stop signs", "a hot dog".
        if letter in "bgJ" and letters[index + 1] in "NS" and is_object(f"{words[index]} {words[index + 1]}"):
            letters[index] = "N"
    text = "".join(letters)
    for place, decision in _DECISIONS:
        text = place.sub(decision, text)
    return text


@lru_cache(maxsize=100_000)
def _letter(word: str, tag: str, is_object: Callable[[str], bool]) -> str:
    letter = _LETTERS.get(tag, ".")
    if letter in "NS" or not is_object(word):
        return _WORDS.get(word.lower(), letter)
    return _OBJECT_LETTERS.get(tag, "S" if word.endswith("s") else "N")
