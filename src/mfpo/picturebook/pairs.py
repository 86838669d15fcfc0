"""Preference pairs of the picture book: the base model's own answer, and the same answer corrected (as RLHF-V's)."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor, set_seed

from mfpo.errors import SettingError
from mfpo.images import encode_image
from mfpo.masks import encode_mask
from mfpo.models import encode_questions, load_model, load_processor
from mfpo.picturebook import WEIGHTS
from mfpo.picturebook.drawings import KINDS, RGB
from mfpo.picturebook.scenes import Scene, Thing, draw_scene, make_scene
from mfpo.picturebook.texts import CAPTION_PROMPTS, noun_phrase, place
from mfpo.records import NamedMask, Origin, SourceRecord, new_record

PairKind = Literal["corrected", "ranked"]

_KINDS = "|".join(KINDS)
_THING = re.compile(rf"\b(an?) ({'|'.join(RGB)}) ({_KINDS})\b", re.IGNORECASE)
_ANCHOR = re.compile(rf"^To the right of the ({_KINDS}) is (.*)\.$")
_PLACE = re.compile(r"\b((?:at|on) the (?:top|bottom|left|right)(?: left| right)?|in the middle)\b", re.IGNORECASE)

# Scenes of the different uses never meet: pretraining draws from 0 on.
SPLITS = {"pairs": 100_000_000, "heldout": 200_000_000, "validation": 300_000_000}
_SCENES_A_SEED = 1_000_000
_SEEDS = 100
_BATCH = 64


def scene_seeds(split: str, seed: int) -> Iterator[int]:
    """The seeds of the scenes of one use: `pairs` to train on, `heldout` to report, `validation` to choose by.

    Raises SettingError for an unknown use, and for a seed beyond which the uses would share scenes.
    """
    if split not in SPLITS:
        raise SettingError(f"split is {split!r}, but must be one of {', '.join(SPLITS)}")
    if not 0 <= seed < _SEEDS:
        raise SettingError(f"the picture book's seed is {seed}, but must be from 0 to {_SEEDS - 1}")
    start = SPLITS[split] + seed * _SCENES_A_SEED
    return iter(range(start, start + _SCENES_A_SEED))


class PictureBook:
    """`count` pairs on new scenes, only where the base model's sampled caption names what is not there.

    A `corrected` pair prefers the same caption with its faults put right, as RLHF-V's; a `ranked` one prefers another
    sampled caption that names nothing absent, as those of which a judge finds one better do (VLFeedback's).
    A source for `mfpo build`; each record brings the masks of all objects of its scene.
    """

    name = "picturebook"

    def __init__(self, count: int, *, seed: int = 0, split: str = "pairs", kind: PairKind = "corrected") -> None:
        scene_seeds(split, seed)  # an error now, not when the first row is asked for
        self.count, self.seed, self.split, self.kind = count, seed, split, kind

    @property
    def provenance(self) -> dict[str, Any]:
        return {"picturebook": self.count, "seed": self.seed, "split": self.split, "kind": self.kind}

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        model, processor = load_model(WEIGHTS), load_processor(WEIGHTS)
        set_seed(self.seed)
        seeds = scene_seeds(self.split, self.seed)
        found = 0
        while found < self.count:
            scenes = [make_scene(next(seeds)) for _ in range(_BATCH)]
            questions = [CAPTION_PROMPTS[scene.seed % len(CAPTION_PROMPTS)] for scene in scenes]
            samples = [
                _sample(model, processor, scenes, questions) for _ in range(1 if self.kind == "corrected" else 2)
            ]
            for scene, question, *answers in zip(scenes, questions, *samples, strict=True):
                pair = _pair(scene, answers)
                if found < self.count and pair:
                    found += 1
                    yield {"scene": scene.seed, "question": question, "chosen": pair[0], "rejected": pair[1]}

    def id(self, row: dict[str, Any], number: int) -> str:
        return f"scene-{row['scene']}"

    def record(self, row: dict[str, Any], number: int) -> SourceRecord:
        """Draw the scene."""
        image, masks = draw_scene(make_scene(row["scene"]))
        return new_record(
            id=self.id(row, number),
            images=[encode_image(image)],
            question=row["question"],
            chosen=row["chosen"],
            rejected=row["rejected"],
            objects=[NamedMask(name=name, mask=encode_mask(mask)) for name, mask in masks.items()],
            source=Origin(dataset=self.name, row=number),
        )


def _pair(scene: Scene, answers: Sequence[str]) -> tuple[str, str] | None:
    """The chosen and the rejected answer, of one sampled caption or of two; None where nothing tells them apart."""
    wrong = [answer for answer in answers if absent_kinds(answer, scene)]
    right = [answer for answer in answers if answer not in wrong]
    if len(answers) == 1:
        return (correct(wrong[0], scene), wrong[0]) if wrong else None
    return (right[0], wrong[0]) if right and wrong else None


def absent_kinds(text: str, scene: Scene) -> set[str]:
    """The kinds that `text` describes and the scene does not have."""
    return {match[3].lower() for match in _THING.finditer(text)} - scene.kinds


def correct(text: str, scene: Scene) -> str:
    """`text` without what is not in the scene, by the smallest change.

    Each absent object gives way to one that is there and was not mentioned; where none is left, its sentence goes.
    Wrong colours are put right; wrong places stay, as they are in both answers. Text that is not in the words of the
    picture book stays as it is.
    """
    mentioned = {match[3].lower() for match in _THING.finditer(text)}
    unmentioned = [thing for thing in scene.things if thing.kind not in mentioned]
    things = {thing.kind: thing for thing in scene.things}
    sentences = []
    for sentence in re.split(r"(?<=\.) ", text.strip()):
        match = _THING.search(sentence)
        thing = things.get(match[3].lower()) if match else None
        if match and thing is None:
            if not unmentioned:
                continue
            thing = unmentioned.pop(0)
            sentence = _put(place(thing), _PLACE, sentence)
        if thing is not None:
            sentence = _about(thing, sentence, scene)
        sentences.append(sentence)
    return " ".join(sentences)


def _about(thing: Thing, sentence: str, scene: Scene) -> str:
    """The sentence with `thing` as what it describes, and no reference to an absent object."""
    sentence = _put(noun_phrase(thing.colour, thing.kind), _THING, sentence)
    anchor = _ANCHOR.match(sentence)
    if anchor and anchor[1] not in scene.kinds - {thing.kind}:
        return f"There is {anchor[2]} {place(thing)}."
    return sentence


def _put(text: str, pattern: re.Pattern[str], sentence: str) -> str:
    """`sentence` with `text` for the first match of `pattern`, with a capital where that had one."""
    capital = text[0].upper() + text[1:]
    return pattern.sub(lambda found: capital if found[0][0].isupper() else text, sentence, count=1)


@torch.inference_mode()
def _sample(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, scenes: list[Scene], questions: list[str]
) -> list[str]:
    """One answer a scene, sampled at temperature 1."""
    images = [draw_scene(scene)[0] for scene in scenes]
    batch = encode_questions(processor, questions, images)
    output = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=128)
    texts = processor.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]
