"""Paper 3.1: the keywords of an answer, ranked in a multipartite graph of its noun phrases."""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, chain, combinations

import numpy as np
from numpy.typing import NDArray

from mfpo.build.settings import KeywordSettings
from mfpo.build.vectors import Matrix, open_vectors
from mfpo.build.words import SECONDARY, Candidate, candidates, open_tagger
from mfpo.errors import RecordError
from mfpo.objects import category_of
from mfpo.records import Keyword

# Boudin 2018 joins two clusters when their candidates share at least 26 % of their stems on average.
_TOPIC_OVERLAP = 0.26
# Memory and time grow with the square of it; an answer of usual length names 20 to 40.
_MOST_MENTIONS = 2000


def rank_keywords(text: str, settings: KeywordSettings, *, against: str = "") -> list[Keyword]:
    """The `settings.top_k` best keywords of `text`, best first; fewer where it names fewer things, none if it has none.

    Of two phrases for one thing ("dining table", "table") only the better one is returned. Things that the text
    `against` also names are omitted, unless it names them all. Raises RecordError when one of the texts names more than
    2,000 things, repetitions included.

    >>> best = rank_keywords("A black cat sits on a mat. The cat eyes a mouse.", KeywordSettings(top_k=2))
    >>> [keyword["text"] for keyword in best]
    ['black cat', 'mat']
    """
    phrases, others = _named(text, settings.tagger), _named(against, settings.tagger) if against else []
    if not phrases:
        return []
    vectors = open_vectors(settings.vectors)
    omega = edge_weights(phrases, settings, vectors([phrase.text for phrase in phrases]) if vectors else None)
    scores = page_rank(omega, settings.damping)
    order = np.argsort(-scores, kind="stable").tolist()
    differing = [index for index in order if not any(_same_thing(phrases[index], other) for other in others)]
    best: list[int] = []
    for index in differing or order:
        if not any(_same_thing(phrases[index], phrases[other]) for other in best):
            best.append(index)
            if len(best) == settings.top_k:
                break
    return [Keyword(text=phrases[i].text, score=float(scores[i])) for i in best]


def _named(text: str, tagger: str) -> list[Candidate]:
    phrases = candidates(text, open_tagger(tagger))
    times = sum(len(phrase.positions) for phrase in phrases)
    if times > _MOST_MENTIONS:
        raise RecordError(
            f"an answer of {len(text)} characters names things {times} times, more than the limit of "
            f"{_MOST_MENTIONS}; if it repeats itself, cut it"
        )
    return phrases


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
    # Not in the paper: a street or a shirt is seldom what an answer is about, though mentioned first.
    kappa *= [settings.secondary if phrase.nouns[-1] in SECONDARY else 1.0 for phrase in phrases]
    return tau * kappa[:, None]


def closeness(positions: Sequence[Sequence[int]], phi: float) -> Matrix:
    """theta, (n, n): the sum of 1 / (1 + distance^phi) over all pairs of mentions of two phrases."""
    mentions = np.array(list(chain.from_iterable(positions)), dtype=np.float64)
    starts = list(accumulate(map(len, positions[:-1]), initial=0))
    pairs = 1 / (1 + np.abs(mentions[:, None] - mentions) ** phi)
    return np.add.reduceat(np.add.reduceat(pairs, starts, axis=0), starts, axis=1)


def topics_of(phrases: Sequence[Candidate]) -> NDArray[np.int64]:
    """The topic of each phrase, (n,): average-linkage clusters by the overlap (Jaccard) of their nouns.

    Boudin clusters by all stems. Here the adjectives stay out: "black cat" and "black helmet" are two things.
    """
    topics = np.arange(len(phrases))
    times = Counter(chain.from_iterable(phrase.nouns for phrase in phrases))
    # Most phrases share no noun with any other, and stay alone.
    related = [i for i, phrase in enumerate(phrases) if any(times[noun] > 1 for noun in phrase.nouns)]
    overlap = _overlaps([set(phrases[i].nouns) for i in related])
    members = np.ones(len(related))
    while overlap.size and overlap.max() >= _TOPIC_OVERLAP:
        first, later = sorted(divmod(int(overlap.argmax()), len(related)))
        merged = (members[first] * overlap[first] + members[later] * overlap[later]) / (members[first] + members[later])
        overlap[first], overlap[:, first], overlap[first, first] = merged, merged, 0
        overlap[later], overlap[:, later] = 0, 0
        members[first] += members[later]
        topics[topics == related[later]] = related[first]
    return topics


def _overlaps(sets: Sequence[set[str]]) -> Matrix:
    """The share of words that two sets have in common, (n, n), 0 for a set with itself."""
    overlap = np.zeros((len(sets), len(sets)))
    for (i, words), (j, other) in combinations(enumerate(sets), 2):
        if shared := len(words & other):
            overlap[i, j] = overlap[j, i] = shared / (len(words) + len(other) - shared)
    return overlap


def page_rank(omega: Matrix, damping: float) -> Matrix:
    """The scores r, (n,), of r(i) = (1 - a) + a * sum over j of omega_ij / (all that j gives away) * r(j).

    The paper iterates to this fixed point from r = 1 - a; solved at once it is exact, and quicker in graphs this small.
    """
    outgoing = omega.sum(axis=0)
    # A phrase without an edge (all phrases are one topic) gives nothing away.
    shares = omega / np.where(outgoing > 0, outgoing, 1)
    return np.linalg.solve(np.eye(len(omega)) - damping * shares, np.full(len(omega), 1 - damping))


def _same_thing(phrase: Candidate, other: Candidate) -> bool:
    """Whether one phrase is the other without its first nouns, and not another object ("dog", "hot dog")."""
    shared = min(len(phrase.nouns), len(other.nouns))
    if phrase.nouns[-shared:] != other.nouns[-shared:]:
        return False
    return len({category_of(phrase.text), category_of(other.text)} - {None}) < 2
