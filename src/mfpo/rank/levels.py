"""From easy to hard (paper, section 3.3): records sorted by entropy and cut into levels, the stages of training."""

import re
from collections.abc import Sequence

from mfpo.errors import MfpoError, brief

LEVELS = ("easy", "medium", "hard")


def level_names(count: int) -> list[str]:
    """Three levels are easy, medium and hard; any other number are level-1, level-2, ..."""
    return list(LEVELS) if count == len(LEVELS) else [f"level-{number + 1}" for number in range(count)]


def cut_levels(entropies: Sequence[float], ids: Sequence[str], count: int = len(LEVELS)) -> list[str]:
    """The level of each record: sorted by entropy, ties by id, and split into `count` equal parts.

    >>> cut_levels([3.0, 1.0, 2.0], ["a", "b", "c"])
    ['hard', 'easy', 'medium']
    >>> cut_levels([3.0, 1.0, 2.0], ["a", "b", "c"], 2)
    ['level-2', 'level-1', 'level-1']
    """
    names = level_names(count)
    order = sorted(range(len(ids)), key=lambda i: (entropies[i], ids[i]))
    levels = [""] * len(ids)
    for place, i in enumerate(order):
        levels[i] = names[place * count // len(order)]
    return levels


def stages(levels: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The stages of training in order, easy first: the level's name and the rows in it; empty levels are left out.

    Raises MfpoError when the names are not those of `cut_levels`.
    """
    names = set(levels)
    numbered = {name for name in names if re.fullmatch(r"level-[1-9][0-9]*", name)}
    if names <= set(LEVELS):
        order = [name for name in LEVELS if name in names]
    elif names == numbered:
        order = sorted(names, key=lambda name: int(name.removeprefix("level-")))
    else:
        unknown = min(names - numbered - set(LEVELS) or numbered)
        raise MfpoError(
            f"column 'level' holds {brief(unknown)}, but must be one of {', '.join(LEVELS)}, or level-1, level-2, ... "
            "in all rows; run `mfpo rank` again"
        )
    return [(name, [row for row, level in enumerate(levels) if level == name]) for name in order]
