"""Which words of a tagged text are nouns.

A tagger that sees no context takes "two bears" for a verb and "an orange" for an adjective. So for words that name
objects, their place in the sentence decides, not the tag.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import repeat

# Parts of speech as in the Penn Treebank, a letter each; small letters are undecided. An object's name is o when it is
# tagged as an adjective, v or w (in -s) as a verb, x as a plural noun in -s. Of other words, b is a verb's base form, g
# its -ing form.
_LETTERS = {
    "JJ": "J", "JJR": "J", "JJS": "J", "NN": "N", "NNP": "N", "NNS": "S", "NNPS": "S", "VB": "b", "VBG": "g",
    "DT": "D", "PRP$": "H", "TO": "T", "MD": "P", "PRP": "P", "WP": "P", "WDT": "P", "CC": "C", ",": "C", "CD": "#",
}  # fmt: skip
_OBJECT_LETTERS = {"JJ": "o", "VB": "v", "VBP": "v", "VBZ": "w", "NNS": "x"}
_WORDS = dict.fromkeys(("that", "which", "who"), "P") | dict.fromkeys(
    ("is", "are", "was", "were", "be", "look", "looks"), "B"
)
_WORDS |= dict.fromkeys(("into", "onto", "down", "up", "off", "away", "over", "through", "across", "along"), "A")
# Such adjectives describe the sentence, not the thing.
_VAGUE = "other few various several many more most same different such visible additional next likely"
_WORDS |= dict.fromkeys(_VAGUE.split(), "Q")
# What a tagger makes of "isn't", "dog's." and "we'll", and takes for nouns.
_PIECES = "n t t. s s. d d. m m. ve ll re"
_WORDS |= dict.fromkeys(_PIECES.split(), ".")
# The taggers know no other language, and make one long noun of a sentence in another script.
_IS_ENGLISH = re.compile("[A-Za-zÀ-ɏ]")

_BEFORE_A_NOUN = re.compile("[bgJSx](?=[NSx])")
_UNDECIDED = re.compile("[ovwx]")
_DECISIONS = (
    # An adjective after all: "an orange tabby", "an orange and white cat"; "the bus is bright orange".
    (re.compile("o(?=J*o)"), "J"),
    (re.compile("o(?=(?:C{0,2}[Jo]){0,9}([NSx]|[vw](?![ADH])))"), "J"),
    (re.compile("(B[.]?(?:[Jo]C{0,2}){0,9})o"), r"\1J"),
    # A verb after all: "to bear", "it sinks", "trees that bear fruit"; "the sign bears a name", "a child sinks into".
    (re.compile("(?<=[PT])v|(?<=P)[wx]|(?<=[NSovx])(?:[vw](?=[ADH])|x(?=[DH]))"), "."),
    (re.compile("[ov]"), "N"),
    (re.compile("[wx]"), "S"),
)
# Any word after an article or an adjective is no verb: "a stop sign", "a white double sink".
_NO_VERB = re.compile("(?<=[DJQ])b")


def word_letters(words: Sequence[str], tags: Sequence[str], is_object: Callable[[str], bool]) -> str:
    """A letter for each word: J an adjective, N a noun, S a plural noun, any other letter none of these.

    `tags` are those of the Penn Treebank; `is_object` says whether one or two words are an object's name.

    >>> words, tags = ["two", "bears", "in", "a", "sink"], ["CD", "VBZ", "IN", "DT", "VB"]
    >>> word_letters(words, tags, is_object={"bears", "sink"}.__contains__)
    '#S.DN'
    """
    letters = "".join(map(_letter, words, tags, repeat(is_object)))
    for match in _BEFORE_A_NOUN.finditer(letters):
        # "With stop signs", "a hot dog", "a sports ball".
        if is_object(f"{words[match.start()]} {words[match.end()]}"):
            letters = f"{letters[: match.start()]}N{letters[match.end() :]}"
    if _UNDECIDED.search(letters):
        for place, decision in _DECISIONS:
            letters = place.sub(decision, letters)
    return _NO_VERB.sub("N", letters)


@lru_cache(maxsize=100_000)
def _letter(word: str, tag: str, is_object: Callable[[str], bool]) -> str:
    letter = _LETTERS.get(tag, ".")
    if letter != "N" and is_object(word):
        is_plural = word.endswith("s")
        return "S" if tag == "NNS" and not is_plural else _OBJECT_LETTERS.get(tag, "S" if is_plural else "N")
    return _WORDS.get(word.lower(), letter if _IS_ENGLISH.match(word) or letter not in "JNS" else ".")
