"""Paper 3.1: the keywords of an answer, ranked in a multipartite graph of its noun phrases."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from textblob.en.inflect import singularize
from textblob.taggers import PatternTagger

from mfpo.errors import SettingError
from mfpo.objects import category_of
from mfpo.records import Keyword
from mfpo.settings import setting

Matrix = NDArray[np.float64]

_TAGGER = PatternTagger()
# One letter a word, so that a noun phrase is a match of the pattern and its span is the word positions.
_LETTER = {"JJ": "J", "JJR": "J", "JJS": "J", "NN": "N", "NNP": "N", "NNS": "S", "NNPS": "S"}
_NOUN_PHRASE = re.compile("J*[NS]+")
# A phrase with such a head names nothing that a region could show.
_INVISIBLE = """
image picture photo photograph photography scene view viewpoint perspective background foreground surrounding
setting environment atmosphere mood nature composition arrangement contrast focus detail total side left right top
bottom middle center centre front back corner edge end part portion section area spot point level location position
direction angle distance proximity space group couple pair row number variety mix range series set sort kind type
lot way time day hour moment today event session activity action preparation purpose use work rest interest
condition sense presence appearance color colour style size shape scale feature element addition example item object
thing other one someone something anyone anything everyone everything yes no answer question re
"""
_INVISIBLE_NOUNS = frozenset(_INVISIBLE.split())
# Such adjectives describe the sentence, not the thing.
_VAGUE = "other few various several many more most same different such visible additional next likely"
_VAGUE_ADJECTIVES = frozenset(_VAGUE.split())
# Boudin 2018 joins two clusters when their candidates share at least 26 % of their stems on average.
_TOPIC_OVERLAP = 0.26


@dataclass(frozen=True, kw_only=True)
class KeywordSettings:
    """The graph's free parameters. The paper gives none of their values.

    `phi` and `decay` are set so that most captions get a keyword that is seen in the image (figures: docs/build.md).
    """

    top_k: int = setting(3, "how many keywords of an answer are looked for in the image (K)")
    phi: float = setting(0.5, "how fast the bond of two phrases falls with their distance in words (phi)")
    gamma: float = setting(0.1, "weight of semantic similarity against closeness; counts only with vectors (gamma)")
    alpha: float = setting(1.1, "how much the first phrase of a topic gains from the topic's other phrases (alpha)")
    decay: float = setting(0.05, "how fast phrases lose weight, per word before their first mention (lambda)")
    damping: float = setting(0.85, "share of a score that comes from the neighbours in the graph (a)")

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise SettingError(f"top_k is {self.top_k}, but must be 1 or more")
        if not 0 <= self.damping < 1:
            raise SettingError(f"damping is {self.damping}, but must be from 0 to below 1")
        for name in ("phi", "gamma", "alpha", "decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingError(f"{name} is {getattr(self, name)}, but must be 0 or more")


@dataclass(frozen=True)
class Candidate:
    """A thing that the text names: `text` as first written, its `nouns` in singular, the word `positions` from 0."""

    text: str
    nouns: tuple[str, ...]
    positions: tuple[int, ...]


def rank_keywords(
    text: str, settings: KeywordSettings, vectors: Callable[[Sequence[str]], Matrix] | None = None
) -> list[Keyword]:
    """The `settings.top_k` best keywords of `text`, best first; fewer where it names fewer things, none if it has none.

    `vectors` gives a row for each phrase, (n, d), whose cosines are the semantic weights sigma; without it sigma is 0.
    Of two phrases for one thing ("dining table", "table") the better one stands for both.

    >>> best = rank_keywords("A black cat sits on a mat. The cat eyes a mouse.", KeywordSettings(top_k=2))
    >>> [keyword["text"] for keyword in best]
    ['black cat', 'mat']
    """
    phrases = candidates(text)
    if not phrases:
        return []
    vectors_of_phrases = vectors([phrase.text for phrase in phrases]) if vectors else None
    scores = page_rank(edge_weights(phrases, settings, vectors_of_phrases), settings.damping)
    best: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if not any(_same_thing(phrases[index], phrases[other]) for other in best):
            best.append(int(index))
    return [Keyword(text=phrases[i].text, score=float(scores[i])) for i in best[: settings.top_k]]


def candidates(text: str) -> list[Candidate]:
    """The nouns and noun phrases (adjectives, then nouns) of `text` that can name a visible thing, by first mention."""
    tagged = _TAGGER.tag(text)
    tags_before = ["", *(tag for _, tag in tagged)]
    letters = "".join(_letter(word, tag, before) for (word, tag), before in zip(tagged, tags_before, strict=False))
    found: dict[tuple[str, ...], tuple[str, list[int]]] = {}
    for match in _NOUN_PHRASE.finditer(letters):
        words = [word.lower() for word, _ in tagged[match.start() : match.end()]]
        adjectives = match.group().count("J")
        kinds = match.group()[adjectives:]
        nouns = tuple(_singular(w) if k == "S" else w for w, k in zip(words[adjectives:], kinds, strict=True))
        if nouns[-1] not in _INVISIBLE_NOUNS:
            found.setdefault(nouns, (" ".join(words), []))[1].append(match.start())
    return [Candidate(text, nouns, tuple(positions)) for nouns, (text, positions) in found.items()]


def edge_weights(phrases: Sequence[Candidate], settings: KeywordSettings, vectors: Matrix | None = None) -> Matrix:
    """omega, (n, n): row i, column j holds the weight of the edge from phrase j to phrase i, 0 inside a topic."""
    mu = closeness([phrase.positions for phrase in phrases], settings.phi)  # theta
    if vectors is not None:
        units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        # An edge cannot weigh less than nothing: opposite meanings count as unrelated.
        mu = mu + settings.gamma * np.maximum(units @ units.T, 0)
    topics = topics_of(phrases)
    mu = np.where(topics[:, None] == topics, 0, mu)
    first_positions = np.array([phrase.positions[0] for phrase in phrases])
    tau = mu.copy()
    for topic in np.flatnonzero(np.bincount(topics) > 1):
        first, *mates = np.flatnonzero(topics == topic)  # phrases come by first mention
        # The first phrase of a topic inherits from its mates (Boudin 2018), which no edge could carry to it.
        tau[first] += settings.alpha * np.exp(1 / (3 + first_positions[first])) * mu[mates].sum(axis=0)
    kappa = np.exp(-settings.decay * first_positions)
    return tau * kappa[:, None]


def closeness(positions: Sequence[Sequence[int]], phi: float) -> Matrix:
    """theta, (n, n): the sum of 1 / (1 + distance^phi) over all pairs of mentions of two phrases."""
    mentions = np.concatenate([np.asarray(p, dtype=np.float64) for p in positions])
    starts = np.cumsum([0, *map(len, positions[:-1])])
    pairs = 1 / (1 + np.abs(mentions[:, None] - mentions) ** phi)
    return np.add.reduceat(np.add.reduceat(pairs, starts, axis=0), starts, axis=1)


def topics_of(phrases: Sequence[Candidate]) -> NDArray[np.int64]:
    """The topic of each phrase, (n,): average-linkage clusters by the overlap (Jaccard) of their nouns.

    Boudin clusters by all stems. Here the adjectives stay out: "black cat" and "black helmet" are two things.
    """
    columns = {noun: number for number, noun in enumerate(dict.fromkeys(n for p in phrases for n in p.nouns))}
    has_noun = np.zeros((len(phrases), len(columns)))
    for row, phrase in enumerate(phrases):
        has_noun[row, [columns[noun] for noun in phrase.nouns]] = 1
    shared = has_noun @ has_noun.T
    sizes = has_noun.sum(axis=1)
    overlap = shared / (sizes[:, None] + sizes - shared)
    np.fill_diagonal(overlap, 0)
    topics = np.arange(len(phrases))
    members = np.ones(len(phrases))
    while overlap.max() >= _TOPIC_OVERLAP:
        kept, gone = sorted(divmod(int(overlap.argmax()), len(phrases)))
        merged = (members[kept] * overlap[kept] + members[gone] * overlap[gone]) / (members[kept] + members[gone])
        overlap[kept], overlap[:, kept], overlap[kept, kept] = merged, merged, 0
        overlap[gone], overlap[:, gone] = 0, 0
        members[kept] += members[gone]
        topics[topics == gone] = kept
    return topics


def page_rank(omega: Matrix, damping: float) -> Matrix:
    """The scores r, (n,), of r(i) = (1 - a) + a * sum over j of omega_ij / (all that j gives away) * r(j).

    The paper iterates to this fixed point from r = 1 - a; solved at once it is exact, and quicker in graphs this small.
    """
    given = omega.sum(axis=0)
    # A phrase without an edge (all phrases are one topic) gives nothing away.
    shares = omega / np.where(given > 0, given, 1)
    return np.linalg.solve(np.eye(len(omega)) - damping * shares, np.full(len(omega), 1 - damping))


def _letter(word: str, tag: str, tag_before: str) -> str:
    """J for an adjective, N for a noun, S for a plural noun, and a dot for what no phrase consists of."""
    # The tagger takes each word alone: "a stop sign", "a white sink" and "a teddy bear" have a verb for it.
    if tag == "VB" and (tag_before in ("DT", "JJ") or (tag_before != "TO" and category_of(word))):
        return "N"
    if not word[0].isalpha() or word.lower() in _VAGUE_ADJECTIVES:
        return "."
    return _LETTER.get(tag, ".")


def _same_thing(one: Candidate, other: Candidate) -> bool:
    """Whether one phrase is the other without its first nouns."""
    shared = min(len(one.nouns), len(other.nouns))
    return one.nouns[-shared:] == other.nouns[-shared:]


@lru_cache(maxsize=100_000)
def _singular(noun: str) -> str:
    return singularize(noun)
