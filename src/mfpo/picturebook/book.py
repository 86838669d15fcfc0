"""A folder of scenes with ground truth and questions, to evaluate a model."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from mfpo.folders import whole_folder
from mfpo.picturebook.scenes import draw_scene, make_scene
from mfpo.picturebook.splits import scene_seeds
from mfpo.picturebook.texts import CAPTION_PROMPTS, existence_questions

# What a model is scored by on the book, and what tables call it.
FIGURES = {
    "chair_s": "CHAIR_s",
    "chair_i": "CHAIR_i",
    "cover": "Cover",
    "length": "length",
    "existence_accuracy": "existence",
    "image_dependence": "image dependence",
}


def draw_book(out: Path, *, count: int, seed: int = 0, split: str = "heldout") -> None:
    """Draw `count` scenes into `out`: `scene-*.png`, and beside them

    `annotations.jsonl` (`image_id`, `objects`: the truth that CHAIR compares with), `captions.jsonl` and
    `existence.jsonl` (questions; the latter with `label` and `negative`).
    """
    with whole_folder(out, {"command": "picturebook draw", "count": count, "seed": seed, "split": split}) as folder:
        truth, captions, existence = [], [], []
        seeds = scene_seeds(split, seed)
        for _ in track(range(count), "drawing scenes"):
            scene = make_scene(next(seeds))
            image = f"scene-{scene.seed}.png"
            draw_scene(scene)[0].save(folder / image)
            truth.append({"image_id": image, "objects": sorted(scene.kinds)})
            prompt = CAPTION_PROMPTS[scene.seed % len(CAPTION_PROMPTS)]
            captions.append({"question_id": f"{scene.seed}", "image": image, "text": prompt})
            for number, question in enumerate(existence_questions(scene, np.random.default_rng(scene.seed))):
                existence.append({"question_id": f"{scene.seed}-{number}", "image": image} | vars(question))
        _write_jsonl(folder / "annotations.jsonl", truth)
        _write_jsonl(folder / "captions.jsonl", captions)
        _write_jsonl(folder / "existence.jsonl", existence)


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
