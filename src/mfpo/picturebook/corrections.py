"""Captions checked against their scene, and corrected as RLHF-V's annotators do."""

import re

from mfpo.picturebook.drawings import KINDS
from mfpo.picturebook.pen import RGB
from mfpo.picturebook.scenes import Scene, Thing
from mfpo.picturebook.texts import noun_phrase, place

_KINDS = "|".join(KINDS)
THING = re.compile(rf"\b(an?) ({'|'.join(RGB)}) ({_KINDS})\b", re.IGNORECASE)
_ANCHOR = re.compile(rf"^To the right of the ({_KINDS}) is (.*)\.$")
_PLACE = re.compile(r"\b((?:at|on) the (?:top|bottom|left|right)(?: left| right)?|in the middle)\b", re.IGNORECASE)


def split_sentences(text: str) -> list[str]:
    """The sentences of a caption of the picture book."""
    return re.split(r"(?<=\.) ", text.strip())


def absent_kinds(text: str, scene: Scene) -> set[str]:
    """The kinds that `text` describes and the scene does not have."""
    return {match[3].lower() for match in THING.finditer(text)} - scene.kinds


def correct(text: str, scene: Scene) -> str:
    """`text` without what is not in the scene, by the smallest change.

    Each absent object gives way to one that is there and was not mentioned; where none is left, its sentence goes.
    Wrong colours are put right; wrong places stay, as they are in both answers. Text that is not in the words of the
    picture book stays as it is.
    """
    mentioned = {match[3].lower() for match in THING.finditer(text)}
    unmentioned = [thing for thing in scene.things if thing.kind not in mentioned]
    things = {thing.kind: thing for thing in scene.things}
    sentences = []
    for sentence in split_sentences(text):
        match = THING.search(sentence)
        thing = things.get(match[3].lower()) if match else None
        if match and thing is None:
            if not unmentioned:
                continue
            thing = unmentioned.pop(0)
            sentence = _put(place(thing), _PLACE, sentence)
        if thing is not None:
            sentence = rewrite(thing, sentence, scene)
        sentences.append(sentence)
    return " ".join(sentences)


def rewrite(thing: Thing, sentence: str, scene: Scene) -> str:
    """The sentence with `thing` as what it describes, and no reference to an absent object."""
    sentence = _put(noun_phrase(thing.colour, thing.kind), THING, sentence)
    anchor = _ANCHOR.match(sentence)
    if anchor and anchor[1] not in scene.kinds - {thing.kind}:
        return f"There is {anchor[2]} {place(thing)}."
    return sentence


def _put(text: str, pattern: re.Pattern[str], sentence: str) -> str:
    """`sentence` with `text` for the first match of `pattern`, with a capital where that had one."""
    capital = text[0].upper() + text[1:]
    return pattern.sub(lambda match: capital if match[0][0].isupper() else text, sentence, count=1)
