"""A folder of scenes with ground truth and questions, to evaluate a model."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from mfpo.folders import whole_folder
from mfpo.picturebook.books import BOOKS
from mfpo.picturebook.scenes import draw_scene
from mfpo.picturebook.splits import scene_seeds
from mfpo.picturebook.texts import CAPTION_PROMPTS, existence_questions

# What a model is scored by on the book, and what tables call it.
FIGURES = {
    "chair_s": "CHAIR_s",
    "chair_i": "CHAIR_i",
    "cover": "Cover",
    "length": "length",
    "existence_accuracy": "existence",
    "image_dependence": "image dependence (noise)",
    "image_dependence_inpainted": "image dependence (inpainted)",
}


# Scenes that are enough to ask existence questions about: five or six each, and few answers are wrong.
ASKED_SCENES = 150


def draw_book(
    out: Path,
    *,
    count: int,
    seed: int = 0,
    split: str = "heldout",
    book: str = "picturebook",
    asked: int | None = None,
) -> None:
    """Draw `count` scenes of a book into `out`: `scene-*.png`, and beside them

    `annotations.jsonl` (`image_id`, `objects`: the truth that CHAIR compares with), `captions.jsonl` and
    `existence.jsonl` (questions; the latter with `label` and `negative`, about the first `asked` scenes).
    """
    made_by = {"command": "picturebook draw", "book": book, "count": count, "seed": seed, "split": split}
    seeds = scene_seeds(split, seed)
    with whole_folder(out, made_by) as folder:
        truth, captions, existence = [], [], []
        for number in track(range(count), "drawing scenes"):
            scene = BOOKS[book].make_scene(next(seeds))
            image = f"scene-{scene.seed}.png"
            draw_scene(scene)[0].save(folder / image)
            truth.append({"image_id": image, "objects": sorted(scene.kinds)})
            prompt = CAPTION_PROMPTS[scene.seed % len(CAPTION_PROMPTS)]
            captions.append({"question_id": f"{scene.seed}", "image": image, "text": prompt})
            if asked is None or number < asked:
                questions = enumerate(existence_questions(scene, np.random.default_rng(scene.seed)))
                existence += [{"question_id": f"{scene.seed}-{n}", "image": image} | vars(q) for n, q in questions]
        _write_jsonl(folder / "annotations.jsonl", truth)
        _write_jsonl(folder / "captions.jsonl", captions)
        _write_jsonl(folder / "existence.jsonl", existence)


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
