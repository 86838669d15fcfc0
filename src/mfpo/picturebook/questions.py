"""The picture book's scenes as questions for `mfpo pairs`, with all that is in them."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from mfpo.images import encode_image
from mfpo.masks import encode_mask
from mfpo.pairs.questions import Asked
from mfpo.picturebook.books import BOOKS
from mfpo.picturebook.scenes import draw_scene
from mfpo.picturebook.splits import scene_seeds
from mfpo.picturebook.texts import CAPTION_PROMPTS
from mfpo.records import NamedMask


class PictureBookQuestions:
    """`count` scenes of a book, each with one caption prompt."""

    def __init__(self, count: int, *, seed: int = 0, split: str = "pairs", book: str = "picturebook") -> None:
        scene_seeds(split, seed)  # an error now, not when the first row is asked for
        self.name, self._make_scene = book, BOOKS[book].make_scene
        self._count, self._seed, self._split = count, seed, split
        self.provenance: Any = {book: count, "seed": seed, "split": split}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"scene": seed} for seed in islice(scene_seeds(self._split, self._seed), self._count))

    def id(self, row: dict[str, Any], number: int) -> str:
        return f"scene-{row['scene']}"

    def question(self, row: dict[str, Any], number: int) -> Asked:
        """Draw the scene."""
        scene = self._make_scene(row["scene"])
        image, masks = draw_scene(scene)
        return Asked(
            id=self.id(row, number),
            image=encode_image(image),
            image_name=f"scene-{scene.seed}.png",
            text=CAPTION_PROMPTS[scene.seed % len(CAPTION_PROMPTS)],
            objects=sorted(scene.kinds),
            masks=[NamedMask(name=name, mask=encode_mask(mask)) for name, mask in masks.items()],
        )
