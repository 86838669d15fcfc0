"""Whether a model looks: what it says where its habits say something else, and where what it spoke of is gone."""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfpo.answer.run import answer
from mfpo.answer.settings import AnswerSettings
from mfpo.dataset import read_dataset
from mfpo.images import decode_image, encode_image
from mfpo.logprobs.sequences import collate, encode, pad_id, sequence_logps
from mfpo.picturebook.books import Book
from mfpo.picturebook.corrections import THING
from mfpo.picturebook.scenes import Scene, draw_scene
from mfpo.picturebook.texts import CAPTION_PROMPTS, caption
from mfpo.probe.dependence import inpainted
from mfpo.records import IMAGE_PLACE, Message, without_places
from mfpo.study.statistics import Array

# What tables call them.
FIGURES = {
    "unusual_colours": "unusual colour",
    "counts": "count",
    "same_without_regions": "same without regions",
}

_BATCH = 32

# Enough for any caption of a book.
_MAX_LENGTH = 512


@torch.inference_mode()
def unusual_colours(model: Any, processor: Any, book: Book, scenes: Sequence[Scene]) -> Array:
    """For each scene how many of its things in an unusual colour the model sees, and how many there are, (scenes, 2).

    It sees one when the true caption is likelier than the same caption with the thing's usual colour.
    """
    items = [(number, scene, usual) for number, scene in enumerate(scenes) for usual in _in_usual_colours(book, scene)]
    counts = np.zeros((len(scenes), 2))
    for start in range(0, len(items), _BATCH):
        batch = items[start : start + _BATCH]
        rows = []
        for _, scene, usual in batch:
            captions = (caption(each, np.random.default_rng(scene.seed)) for each in (scene, usual))
            answers = [[Message(role="assistant", content=text)] for text in captions]
            prompt = [Message(role="user", content=IMAGE_PLACE + CAPTION_PROMPTS[scene.seed % len(CAPTION_PROMPTS)])]
            rows += encode(processor, [draw_scene(scene)[0]], prompt, answers, max_length=_MAX_LENGTH).split()
        logps = sequence_logps(model, collate(rows, pad_id(processor))).view(-1, 2)
        for (number, _, _), is_seen in zip(batch, logps[:, 0] > logps[:, 1], strict=True):
            counts[number] += (is_seen.item(), 1)
    return counts


def _in_usual_colours(book: Book, scene: Scene) -> Iterator[Scene]:
    """The scene as it would usually be, once for each thing in an unusual colour."""
    usual = book.usual_colours(scene.theme)
    for thing in scene.things:
        if thing.colour != usual.get(thing.kind, thing.colour):
            other = replace(thing, colour=usual[thing.kind])
            yield replace(scene, things=tuple(other if each is thing else each for each in scene.things))


def counts(captions: Sequence[str], scenes: Sequence[Scene]) -> Array:
    """Whether each caption names as many things as there are, out of one, (scenes, 2)."""
    named = [{match[3].lower() for match in THING.finditer(text)} for text in captions]
    right = [len(kinds) == len(scene.things) for kinds, scene in zip(named, scenes, strict=True)]
    return np.array([(is_right, 1) for is_right in right], dtype=np.float64)


def same_without_regions(model: Path, pairs: Path) -> Array:
    """Whether the model's answer to each of the `pairs` stays the same when its key regions are gone, (pairs, 2)."""
    questions = []
    columns = read_dataset(pairs).select_columns(["images", "prompt", "regions"]).with_format("arrow")
    for number, record in enumerate(columns[:].to_pylist()):
        images = {"with": decode_image(record["images"][0]), "without": inpainted(record)[0]}
        text = without_places(record["prompt"][0]["content"])
        questions += [
            {"question_id": f"{number}-{how}", "image": b64encode(encode_image(image)["bytes"]).decode(), "text": text}
            for how, image in images.items()
        ]
    settings = AnswerSettings(batch_size=64, max_new_tokens=128)
    texts = [each["text"] for each in answer(questions, model, Path(), settings=settings)]
    return np.array(
        [(original == other, 1) for original, other in zip(texts[::2], texts[1::2], strict=True)], dtype=np.float64
    )
