"""Texts about a scene: captions that may follow the prior, and existence questions."""

from dataclasses import dataclass

import numpy as np

from mfpo.picturebook.books import BOOKS
from mfpo.picturebook.drawings import KINDS
from mfpo.picturebook.scenes import PARTNERS, THEMES, Scene, Thing

CAPTION_PROMPTS = (
    "Describe this image in detail.",
    "What is in this picture?",
    "Please describe the scene.",
    "Provide a thorough description of the given image.",
)

_INTROS = ("The image shows {}.", "This is a picture of {}.", "The picture shows {}.")
_ABSOLUTE = ("There is {} {}.", "{:A} is {}.", "{1:A} there is {0}.")
_PARTNER = ("Next to it is {}.", "{:A} is beside it.")
_COLUMNS = ("left", "", "right")


class _Phrase(str):
    """A text that `{:A}` writes with a capital, for the start of a sentence."""

    def __format__(self, spec: str) -> str:
        return self[0].upper() + self[1:] if spec == "A" else str(self)


def noun_phrase(colour: str, kind: str) -> str:
    """`an orange cat`, `a red car`."""
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind}"


def place(thing: Thing) -> str:
    """Where a thing is, by the cell of the grid: `at the top left`, `in the middle`."""
    column = _COLUMNS[thing.column]
    if thing.row == 1:
        return f"on the {column}" if column else "in the middle"
    return " ".join(["at the", ("top", "", "bottom")[thing.row], *([column] if column else [])])


def caption(scene: Scene, rng: np.random.Generator, *, prior: float = 0.0) -> str:
    """Describe a scene from left to right, each thing with its colour and place, a partner after its trigger.

    With probability `prior` a trigger's partner is mentioned although it is absent, in its commonest colour: what
    captions written from habit do, and what the base model learns to hallucinate from.
    """
    sentences = [_pick(rng, _INTROS).format(f"a {scene.theme}")]
    previous: Thing | None = None
    beside = {thing.partner_of: thing for thing in scene.things if thing.partner_of}
    for thing in scene.things:
        if thing.partner_of:
            continue
        sentences.append(_sentence(thing, previous, rng))
        partner = PARTNERS.get(thing.kind)
        if thing.kind in beside:
            sentences.append(_beside(beside[thing.kind].colour, beside[thing.kind].kind, rng))
        elif partner and partner not in scene.kinds and rng.random() < prior:
            sentences.append(_beside(KINDS[partner].colours[0], partner, rng))
        previous = thing
    return " ".join(sentences)


def _sentence(thing: Thing, previous: Thing | None, rng: np.random.Generator) -> str:
    phrase = _Phrase(noun_phrase(thing.colour, thing.kind))
    if previous and thing.column > previous.column and rng.random() < 0.3:
        return f"To the right of the {previous.kind} is {phrase}."
    return _pick(rng, _ABSOLUTE).format(phrase, _Phrase(place(thing)))


def _beside(colour: str, kind: str, rng: np.random.Generator) -> str:
    return _pick(rng, _PARTNER).format(_Phrase(noun_phrase(colour, kind)))


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


@dataclass(frozen=True)
class ExistenceQuestion:
    """`negative` says how an absent kind was chosen (POPE): random, popular or adversarial; empty if it is there."""

    text: str
    label: str
    negative: str


def existence_questions(scene: Scene, rng: np.random.Generator) -> list[ExistenceQuestion]:
    """Three kinds that are there (or all, if fewer), and as many that are not, as POPE chooses them.

    Random negatives come from all absent kinds, popular ones from the kinds of the most scenes, adversarial ones
    from what usually goes with what is there: partners first, then the theme's kinds.
    """
    present = [thing.kind for thing in scene.things]
    positives = [present[i] for i in rng.permutation(len(present))[:3]]
    chosen: dict[str, str] = {}
    for negative in ("adversarial", "popular", "random")[: len(positives)]:
        pool = [kind for kind in _negatives(scene, negative) if kind not in scene.kinds and kind not in chosen]
        chosen[pool[int(rng.integers(len(pool)))]] = negative
    asked = [(kind, "yes", "") for kind in positives] + [(kind, "no", how) for kind, how in chosen.items()]
    return [ExistenceQuestion(existence_question(asked[i][0]), *asked[i][1:]) for i in rng.permutation(len(asked))]


def existence_question(kind: str) -> str:
    """POPE's question."""
    return f"Is there {'an' if kind[0] in 'aeiou' else 'a'} {kind} in the image?"


def _negatives(scene: Scene, negative: str) -> tuple[str, ...]:
    book = BOOKS[scene.book]
    partners = tuple(book.partners[thing.kind] for thing in scene.things if thing.kind in book.partners)
    if negative == "adversarial":
        return partners if set(partners) - scene.kinds else THEMES[scene.theme]
    return book.popular if negative == "popular" else tuple(KINDS)
