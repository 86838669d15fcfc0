"""Scenes: a theme, two to five objects on a grid, drawn from a seed, with an exact mask each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from mfpo.picturebook.drawings import KINDS
from mfpo.picturebook.sprites import sprite

SIDE = 96
CELL = 32

# Each theme strongly favours its own kinds, as real photos do.
THEMES: dict[str, tuple[str, ...]] = {
    "park": ("dog", "frisbee", "bench", "person", "kite", "bird", "bicycle"),
    "street": ("car", "bus", "truck", "traffic light", "stop sign", "fire hydrant", "bicycle"),
    "kitchen": ("oven", "refrigerator", "bowl", "banana", "cup", "bottle"),
    "beach": ("boat", "surfboard", "umbrella", "person", "bird", "airplane"),
    "living room": ("couch", "tv", "cat", "potted plant", "clock", "book"),
    "farm": ("cow", "horse", "sheep", "truck", "dog", "bird"),
    "bedroom": ("bed", "teddy bear", "laptop", "book", "cat", "clock"),
}

# A trigger and the partner that is often beside it: the prior that the base model hallucinates from.
PARTNERS: dict[str, str] = {
    "dog": "frisbee",
    "bench": "bicycle",
    "person": "umbrella",
    "kite": "person",
    "car": "traffic light",
    "bus": "stop sign",
    "truck": "fire hydrant",
    "oven": "refrigerator",
    "bowl": "banana",
    "cup": "bottle",
    "boat": "surfboard",
    "couch": "tv",
    "potted plant": "clock",
    "cat": "book",
    "cow": "horse",
    "sheep": "dog",
    "bed": "teddy bear",
    "laptop": "cup",
}

_PARTNER_PRESENT = 0.4
_FOREIGN = 0.1
GROUND_CELLS = (3, 4, 5, 6, 7, 8)
SKY_CELLS = (0, 1, 2)


@dataclass(frozen=True)
class Thing:
    """An object in a scene; `x`, `y` and `side` are pixels of its box, `partner_of` names its trigger."""

    kind: str
    colour: str
    x: int
    y: int
    side: int
    mirrored: bool
    partner_of: str | None = None

    @property
    def column(self) -> int:
        return self.x // CELL

    @property
    def row(self) -> int:
        return self.y // CELL


@dataclass(frozen=True)
class Scene:
    """What is in a picture. `seed` and `book`, the name of the book that it is of, make it again."""

    seed: int
    theme: str
    things: tuple[Thing, ...]
    book: str = "picturebook"

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(thing.kind for thing in self.things)


def make_scene(seed: int) -> Scene:
    """Place two to five objects of different kinds; a trigger's partner is often, not always, beside it."""
    rng = np.random.default_rng([20_261_124, seed])
    theme = str(rng.choice(list(THEMES)))
    count = int(rng.integers(2, 6))
    free = {True: list(rng.permutation(SKY_CELLS)), False: list(rng.permutation(GROUND_CELLS))}
    things: dict[str, Thing] = {}

    def place(kind: str, trigger: Thing | None = None) -> None:
        cells = free[KINDS[kind].flies]
        if kind in things or not cells:
            return
        cell = min(cells, key=lambda c: _distance(c, trigger)) if trigger else cells[0]
        cells.remove(cell)
        things[kind] = put(kind, KINDS[kind].colours, cell, rng, partner_of=trigger.kind if trigger else None)

    while len(things) < count:
        pool = list(KINDS) if rng.random() < _FOREIGN else THEMES[theme]
        kind = str(rng.choice(pool))
        # A partner comes through its trigger or not at all, so that its absence beside the trigger stays common.
        if PARTNERS.get(kind) in things or kind in things:
            continue
        place(kind)
        if kind in PARTNERS and len(things) < count and rng.random() < _PARTNER_PRESENT:
            place(PARTNERS[kind], things.get(kind))
    return Scene(seed, theme, left_to_right(things.values()))


def put(
    kind: str, colours: Sequence[str], cell: int, rng: np.random.Generator, *, partner_of: str | None = None
) -> Thing:
    """A thing of one of the `colours` somewhere in a cell, which are counted by rows from the top left."""
    side = int(rng.integers(25, 31))
    x, y = (CELL * int(i) + int(rng.integers(0, CELL - side + 1)) for i in (cell % 3, cell // 3))
    return Thing(kind, str(rng.choice(colours)), x, y, side, bool(rng.random() < 0.5), partner_of)


def left_to_right(things: Iterable[Thing]) -> tuple[Thing, ...]:
    """The things in the order in which captions name them."""
    return tuple(sorted(things, key=lambda thing: (thing.x, thing.y)))


def _distance(cell: int, thing: Thing) -> float:
    return abs(cell % 3 - thing.column) + 1.5 * abs(cell // 3 - thing.row)


def draw_scene(scene: Scene) -> tuple[Image.Image, dict[str, np.ndarray]]:
    """The picture, 96 x 96 RGB, and each kind's mask, (96, 96) bool; objects do not overlap."""
    pixels = _background(scene.theme, scene.seed % 16).copy()
    masks = {}
    for thing in scene.things:
        colours, inside = sprite(thing.kind, thing.colour, thing.side, thing.mirrored)
        box = (slice(thing.y, thing.y + thing.side), slice(thing.x, thing.x + thing.side))
        pixels[box][inside] = colours[inside]
        masks[thing.kind] = np.zeros((SIDE, SIDE), dtype=bool)
        masks[thing.kind][box] = inside
    return Image.fromarray(pixels), masks


_SKY, _GRASS, _WALL = (190, 222, 245), (150, 200, 120), (238, 226, 205)


@lru_cache(maxsize=256)
def _background(theme: str, variant: int) -> np.ndarray:
    """A quiet backdrop of the theme, (96, 96, 3) uint8, in one of 16 variants of shade and detail."""
    rng = np.random.default_rng([7, list(THEMES).index(theme), variant])
    image = Image.new("RGB", (SIDE, SIDE))
    canvas = ImageDraw.Draw(image)
    horizon = 34 + int(rng.integers(-3, 4))
    top, bottom = {
        "park": (_SKY, _GRASS),
        "street": (_SKY, (165, 165, 168)),
        "kitchen": ((250, 240, 215), (205, 190, 175)),
        "beach": (_SKY, (236, 218, 170)),
        "living room": (_WALL, (196, 160, 125)),
        "farm": (_SKY, (190, 195, 105)),
        "bedroom": ((225, 225, 245), (190, 175, 190)),
    }[theme]
    canvas.rectangle((0, 0, SIDE, horizon), fill=top)
    canvas.rectangle((0, horizon, SIDE, SIDE), fill=bottom)
    shift = int(rng.integers(0, 24))
    if theme in ("park", "farm"):
        for x in range(-24, SIDE, 40):
            canvas.ellipse((x + shift, horizon - 10, x + shift + 44, horizon + 14), fill=bottom)
    elif theme == "street":
        for x in range(-24, SIDE, 20):
            height = int(rng.integers(12, 28))
            canvas.rectangle((x + shift, horizon - height, x + shift + 14, horizon), fill=(205, 200, 205))
        for x in range(0, SIDE, 24):
            canvas.rectangle((x + shift % 24, 64, x + shift % 24 + 10, 66), fill=(225, 225, 225))
    elif theme == "kitchen":
        for x in range(shift % 12, SIDE, 12):
            canvas.line((x, 0, x, horizon), fill=(235, 220, 195))
        for y in range(4, horizon, 10):
            canvas.line((0, y, SIDE, y), fill=(235, 220, 195))
    elif theme == "beach":
        canvas.rectangle((0, horizon - 12, SIDE, horizon + 4), fill=(120, 185, 215))
        for x in range(-12, SIDE, 16):
            canvas.arc((x + shift % 16, horizon - 8, x + shift % 16 + 12, horizon), 0, 180, fill=(220, 240, 250))
    else:
        canvas.rectangle((shift + 20, 4, shift + 44, 24), fill=(215, 235, 250), outline=(180, 150, 120))
        canvas.ellipse((8, 60, 88, 92), fill=tuple(c - 14 for c in bottom))
    return np.clip(np.asarray(image, dtype=np.int16) + int(rng.integers(-10, 11)), 0, 255).astype(np.uint8)
