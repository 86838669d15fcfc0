"""Rejected images that only a drawing can have: the scene with objects changed, or without what the regions show.

Importing it registers `corruption=counterfactual` and `corruption=erase`.
"""

import re
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np

from mfpo.build.corruptions import Edit, corruption
from mfpo.build.noise import Pixels, dilate, share
from mfpo.build.settings import BuildSettings
from mfpo.build.steps import union
from mfpo.errors import RecordError
from mfpo.masks import Mask, encode_mask
from mfpo.picturebook.books import BOOKS
from mfpo.picturebook.corrections import THING, rewrite, split_sentences
from mfpo.picturebook.drawings import KINDS
from mfpo.picturebook.scenes import Scene, Thing, draw_scene
from mfpo.records import Region, SourceRecord, answer_text
from mfpo.settings import about

# A sentence about what stands beside the object of the sentence before it.
_BESIDE = re.compile(r"^Next to it\b|\bbeside it\.$")

_WAYS = ("remove", "replace", "recolour")


@dataclass(frozen=True)
class Described:
    """A scene with a caption of it, sentence by sentence."""

    scene: Scene
    sentences: tuple[str, ...]

    def sentence_of(self, thing: Thing) -> int | None:
        """The number of the one sentence that describes `thing`; None if there is none, or several."""
        numbers = [
            number
            for number, sentence in enumerate(self.sentences)
            for match in THING.finditer(sentence)
            if match[3].lower() == thing.kind
        ]
        return numbers[0] if len(numbers) == 1 else None

    def is_needed(self, thing: Thing, number: int) -> bool:
        """Whether a sentence beside its own, `number`, needs the thing to be there and of its kind."""
        others = [sentence for other, sentence in enumerate(self.sentences) if other != number]
        return any(re.search(rf"\b{thing.kind}\b", sentence, re.IGNORECASE) for sentence in others)

    def edit(self, thing: Thing, how: str, rng: np.random.Generator) -> "Described | None":
        """The scene and the caption with `thing` edited; None where the caption would need a second change."""
        number = self.sentence_of(thing)
        if number is None or (how != "recolour" and self.is_needed(thing, number)):
            return None
        if how == "remove":
            return self._without(thing, number)
        others = self._others(thing) if how == "replace" else self._recoloured(thing)
        if not others:
            return None
        other = others[int(rng.integers(len(others)))]
        scene = replace(self.scene, things=tuple(other if each is thing else each for each in self.scene.things))
        sentence = rewrite(other, self.sentences[number], scene)
        return Described(scene, (*self.sentences[:number], sentence, *self.sentences[number + 1 :]))

    def _recoloured(self, thing: Thing) -> list[Thing]:
        return [replace(thing, colour=colour) for colour in KINDS[thing.kind].colours if colour != thing.colour]

    def _others(self, thing: Thing) -> list[Thing]:
        """Things of other kinds for its place, which neither scene nor caption has yet."""
        named = {match[3].lower() for sentence in self.sentences for match in THING.finditer(sentence)}
        return [
            replace(thing, kind=kind.name, colour=colour)
            for kind in KINDS.values()
            if kind.name not in named | self.scene.kinds and kind.flies == KINDS[thing.kind].flies
            for colour in kind.colours
        ]

    def _without(self, thing: Thing, number: int) -> "Described | None":
        if any(_BESIDE.search(sentence) for sentence in self.sentences[number + 1 : number + 2]):
            return None
        scene = replace(self.scene, things=tuple(each for each in self.scene.things if each is not thing))
        return Described(scene, (*self.sentences[:number], *self.sentences[number + 1 :]))


@corruption("counterfactual", edits_records=True)
def counterfactual(
    record: SourceRecord,
    regions: list[Region],
    rng: np.random.Generator,
    settings: BuildSettings,
    *,
    edit: Annotated[
        Literal["any", "remove", "replace", "recolour"], about("what happens to an object that the answer names")
    ] = "any",
    edits: Annotated[int, about("maximum number of objects to edit", least=1)] = 1,
) -> Edit:
    """The same scene with named objects taken away, replaced or recoloured, and the right answer to it.

    That is y_w with the sentences of these objects put right and no other. Pixels differ only where an edited object
    was or is: the record's regions. Raises RecordError when no object that the answer names can be edited.
    """
    scene = _scene(record)
    after = Described(scene, tuple(split_sentences(answer_text(record["chosen"]))))
    edited: list[Thing] = []
    for number in rng.permutation(len(scene.things)):
        thing = scene.things[number]
        ways = [str(how) for how in rng.permutation(_WAYS)] if edit == "any" else [edit]
        options = (after.edit(thing, how, rng) for how in ways)
        changed = next((option for option in options if option), None)
        if changed:
            after = changed
            edited.append(thing)
        if len(edited) == edits:
            break
    if not edited:
        raise RecordError("its chosen answer names no object that can be edited")
    image, masks = _with_boxes(after.scene)
    _, masks_before = _with_boxes(scene)
    differs = {
        thing.kind: masks_before[thing.x, thing.y] | masks.get((thing.x, thing.y), np.False_) for thing in edited
    }
    new_regions = [Region(keyword=kind, score=1.0, mask=encode_mask(mask), image=0) for kind, mask in differs.items()]
    return Edit([image], " ".join(after.sentences), new_regions, share(np.any(list(differs.values()), axis=0)))


@corruption("erase", needs_regions=True, edits_records=True)
def erase(record: SourceRecord, regions: list[Region], rng: np.random.Generator, settings: BuildSettings) -> Edit:
    """The scene with its backdrop where the regions are, dilated by `mask_dilate`; no right answer to it is known."""
    scene = _scene(record)
    pixels = np.asarray(draw_scene(scene)[0])
    backdrop = np.asarray(draw_scene(replace(scene, things=()))[0])
    mask = dilate(union(regions, 0, pixels.shape), settings.mask_dilate)
    return Edit([np.where(mask[..., None], backdrop, pixels)], None, regions, share(mask))


def _scene(record: SourceRecord) -> Scene:
    """The scene that a record shows, of the book that it is from."""
    name, _, seed = record["id"].partition("-")
    book = BOOKS.get(record["source"]["dataset"])
    if book is None or name != "scene" or not seed.isdecimal():
        raise RecordError("it is not a scene of the picture book; only those can be redrawn")
    return book.make_scene(int(seed))


def _with_boxes(scene: Scene) -> tuple[Pixels, dict[tuple[int, int], Mask]]:
    """The drawn scene, and each thing's mask by the corner of its box."""
    image, masks = draw_scene(scene)
    return np.asarray(image), {(thing.x, thing.y): masks[thing.kind] for thing in scene.things}
