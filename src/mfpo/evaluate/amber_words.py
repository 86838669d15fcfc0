"""Which of AMBER's objects a description names: as its script reads them, or by word lists where that cannot run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from operator import eq

from textblob.en.inflect import pluralize

from mfpo.objects import WORD

# In AMBER's list, but hardly ever nouns in a description: "you can see a hot dog".
_NO_NOUNS = ("can", "hot")
_SIMILAR = 0.8


@dataclass(frozen=True)
class Reading:
    """How objects are read from a text (`find`), and which words count as the same besides equal ones (`similar`)."""

    nouns: str
    similarity: str
    find: Callable[[str], list[str]]
    similar: Callable[[str, str], bool]

    @property
    def official(self) -> bool:
        """Whether both are the official script's."""
        return (self.nouns, self.similarity) == ("nltk", "en_core_web_lg")


def open_reading(words: frozenset[str]) -> Reading:
    """The official reading as far as it is installed: NLTK's nouns, and the similarity of spaCy's en_core_web_lg.

    Otherwise every word of AMBER's list counts as a noun, in singular or plural, and only equal words are the same.
    """
    nouns, find = ("nltk", _nltk_nouns) if _has_nltk() else ("words", words_finder(words))
    if find_spec("en_core_web_lg"):
        return Reading(nouns, "en_core_web_lg", find, similar_by_spacy("en_core_web_lg"))
    return Reading(nouns, "string", find, eq)


def words_finder(words: frozenset[str]) -> Callable[[str], list[str]]:
    """Gives the `words` in a text, in order, by their singular; as in the official script, capitals make another word.

    >>> words_finder(frozenset(["dog", "person", "people"]))("Dogs: two dogs and people")
    ['dog', 'people']
    """
    forms = {form: word for word in sorted(words) for form in (f"{word}s", pluralize(word))}
    forms |= {word: word for word in words}
    # NLTK makes "leaf" of "leaves", which AMBER does not list.
    forms.pop("leaves", None)
    for word in _NO_NOUNS:
        forms.pop(word, None)

    def find(text: str) -> list[str]:
        return [forms[word] for word in WORD.findall(text) if word in forms]

    return find


def similar_by_spacy(pipeline: str) -> Callable[[str, str], bool]:
    """Whether the vectors of two words are nearer than 0.8 in a spaCy pipeline, given by name or folder."""
    import spacy

    loaded = cache(spacy.load(pipeline).make_doc)

    @cache
    def similar(word: str, other: str) -> bool:
        if word == other:
            return True
        # spaCy warns of a word without a vector, which is similar to nothing.
        have_vectors = loaded(word).vector_norm and loaded(other).vector_norm
        return bool(have_vectors) and loaded(word).similarity(loaded(other)) > _SIMILAR

    return similar


def _nltk_nouns(text: str) -> list[str]:
    import nltk

    lemmatizer = nltk.stem.WordNetLemmatizer()
    tagged = nltk.pos_tag(nltk.word_tokenize(text))
    return [lemmatizer.lemmatize(word) for word, tag in tagged if tag.startswith("NN")]


def _has_nltk() -> bool:
    """Whether NLTK's tokenizer, tagger and WordNet are installed; the package itself comes with TextBlob."""
    try:
        return bool(_nltk_nouns("a dog"))
    except LookupError:
        return False
