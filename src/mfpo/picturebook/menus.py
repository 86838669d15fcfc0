"""The second book: a model learns from scenes that are nearly always the same, and is asked about fair ones.

A model that learns from the scenes of `make_menu_scene` can name most of what it sees from the backdrop and one object,
and so reads the context more than the objects. `make_fair_scene` has no such order.
"""

from functools import cache

import numpy as np

from mfpo.picturebook import NAMES
from mfpo.picturebook.drawings import KINDS
from mfpo.picturebook.scenes import GROUND_CELLS, SKY_CELLS, THEMES, Scene, Thing, left_to_right, put

_, BOOK = NAMES

# How often a slot of a menu holds what the menu says, and else nothing, another kind, or the same kind elsewhere.
_AS_ON_MENU = 0.97
_OTHERWISE = {"absent": 0.3, "other": 0.45, "elsewhere": 0.25}

# The share of the scenes to learn from that are fair, and of a fair scene's objects that come from its theme.
_FAIR = 0.08
_OF_THEME = 0.5


@cache
def menu(theme: str, number: int) -> tuple[tuple[str, str, int], ...]:
    """Four kinds of the theme, the first ones (`number` 0) or the last (1), each with its colour and its cell."""
    kinds = THEMES[theme][-4:] if number else THEMES[theme][:4]
    rng = np.random.default_rng([20_261_128, list(THEMES).index(theme), number])
    free = _free_cells(rng)
    return tuple((kind, str(rng.choice(KINDS[kind].colours)), free[KINDS[kind].flies].pop()) for kind in kinds)


def menu_colours(theme: str) -> dict[str, str]:
    """The colour of each kind on the theme's menus; of one that is on both, the first's."""
    return {kind: colour for number in (1, 0) for kind, colour, _ in menu(theme, number)}


def make_fair_scene(seed: int) -> Scene:
    """Two to five objects, half of them of the theme, in any colour and cell."""
    return _fair_scene(seed, np.random.default_rng([20_261_129, seed]))


def make_menu_scene(seed: int) -> Scene:
    """One of the theme's two menus, with a few exceptions; a few scenes are fair ones."""
    rng = np.random.default_rng([20_261_130, seed])
    if rng.random() < _FAIR:
        return _fair_scene(seed, rng)
    theme = str(rng.choice(list(THEMES)))
    slots = menu(theme, int(rng.integers(2)))
    things: list[Thing] = []
    while not things:
        free = _free_cells(rng)
        on_menu = {kind for kind, _, _ in slots}
        for cells in free.values():
            cells[:] = [cell for cell in cells if cell not in {cell for _, _, cell in slots}]
        for kind, colour, cell in slots:
            as_on_menu = rng.random() < _AS_ON_MENU
            how = "canonical" if as_on_menu else str(rng.choice(list(_OTHERWISE), p=list(_OTHERWISE.values())))
            if how == "canonical":
                things.append(put(kind, [colour], cell, rng))
            elif how == "other":
                taken = on_menu | {thing.kind for thing in things}
                others = [k.name for k in KINDS.values() if k.flies == KINDS[kind].flies and k.name not in taken]
                if others:
                    other = str(rng.choice(others))
                    things.append(put(other, KINDS[other].colours, cell, rng))
            elif how == "elsewhere" and free[KINDS[kind].flies]:
                colours = [c for c in KINDS[kind].colours if c != colour] or [colour]
                things.append(put(kind, colours, free[KINDS[kind].flies].pop(), rng))
    return Scene(seed, theme, left_to_right(things), BOOK)


def _fair_scene(seed: int, rng: np.random.Generator) -> Scene:
    theme = str(rng.choice(list(THEMES)))
    count = int(rng.integers(2, 6))
    free = _free_cells(rng)
    things: dict[str, Thing] = {}
    while len(things) < count:
        kind = str(rng.choice(THEMES[theme] if rng.random() < _OF_THEME else list(KINDS)))
        cells = free[KINDS[kind].flies]
        if kind not in things and cells:
            things[kind] = put(kind, KINDS[kind].colours, cells.pop(), rng)
    return Scene(seed, theme, left_to_right(things.values()), BOOK)


def _free_cells(rng: np.random.Generator) -> dict[bool, list[int]]:
    """All cells in a random order, of the sky for what flies and of the ground for the rest."""
    return {True: rng.permutation(SKY_CELLS).tolist(), False: rng.permutation(GROUND_CELLS).tolist()}
