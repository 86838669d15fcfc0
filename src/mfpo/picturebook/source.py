"""The picture book as a source of preference pairs: the base model's own captions, and the better ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor, set_seed

from mfpo.images import encode_image
from mfpo.masks import encode_mask
from mfpo.models import load_model
from mfpo.picturebook import edits, model_folder  # noqa: F401 - edits registers corruptions that only drawings can have
from mfpo.picturebook.books import BOOKS
from mfpo.picturebook.corrections import absent_kinds, correct
from mfpo.picturebook.scenes import Scene, draw_scene
from mfpo.picturebook.splits import scene_seeds
from mfpo.picturebook.texts import CAPTION_PROMPTS
from mfpo.processors import encode_questions, load_processor
from mfpo.records import NamedMask, Origin, SourceRecord, new_record

# How the chosen answer comes about.
Chosen = Literal["corrected", "ranked", "human"]

# The share of `human` preferences that are the wrong way round. Two people who are each wrong so often agree on 72 % of
# the pairs, as labelers do (72.6 %: Ouyang et al., "Training language models to follow instructions", section 3.4).
FLIPPED = 1 / 6

_BATCH = 64


class PictureBookSource:
    """`count` pairs on new scenes of a book, only where its model's sampled caption names what is not there.

    A `corrected` pair prefers the same caption with its faults put right, as RLHF-V's; a `ranked` one prefers another
    sampled caption that names nothing absent, as those of which a judge finds one better do (VLFeedback's). `human`
    ones are the ranked ones with a share `FLIPPED` of them turned round, as people who compare answers err.
    The book's own model answers, unless another `model` is given. A source for `mfpo build`; each record brings the
    masks of all objects of its scene.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        split: str = "pairs",
        kind: Chosen = "corrected",
        book: str = "picturebook",
        model: Path | None = None,
    ) -> None:
        scene_seeds(split, seed)  # an error now, not when the first row is asked for
        self.name, self.make_scene = book, BOOKS[book].make_scene
        self.count, self.seed, self.split, self.kind, self.model = count, seed, split, kind, model

    @property
    def provenance(self) -> dict[str, Any]:
        made_by = {self.name: self.count, "seed": self.seed, "split": self.split, "kind": self.kind}
        return made_by | ({"model": str(self.model)} if self.model else {})

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        folder = self.model or model_folder(self.name)
        model, processor = load_model(folder), load_processor(folder)
        set_seed(self.seed)
        seeds = scene_seeds(self.split, self.seed)
        pair_count = 0
        while pair_count < self.count:
            scenes = [self.make_scene(next(seeds)) for _ in range(_BATCH)]
            questions = [CAPTION_PROMPTS[scene.seed % len(CAPTION_PROMPTS)] for scene in scenes]
            samples = [
                _sample(model, processor, scenes, questions) for _ in range(1 if self.kind == "corrected" else 2)
            ]
            for scene, question, *answers in zip(scenes, questions, *samples, strict=True):
                pair = _pair(scene, answers)
                if pair_count < self.count and pair:
                    pair_count += 1
                    chosen, rejected = pair[::-1] if self.kind == "human" and _errs(scene) else pair
                    yield {"scene": scene.seed, "question": question, "chosen": chosen, "rejected": rejected}

    def id(self, row: dict[str, Any], number: int) -> str:
        return f"scene-{row['scene']}"

    def record(self, row: dict[str, Any], number: int) -> SourceRecord:
        """Draw the scene."""
        image, masks = draw_scene(self.make_scene(row["scene"]))
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


def _errs(scene: Scene) -> bool:
    """Whether the one who compares the answers about a scene takes the worse for the better."""
    return bool(np.random.default_rng(scene.seed).random() < FLIPPED)


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
