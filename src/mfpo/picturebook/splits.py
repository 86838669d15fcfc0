"""Assigns scenes to uses; different uses never share scenes."""

from collections.abc import Iterator

from mfpo.errors import SettingError

# The first seed of each use; pretraining draws from 0 on.
SPLITS = {"pairs": 100_000_000, "heldout": 200_000_000, "validation": 300_000_000}
_SCENES_A_SEED = 1_000_000
_SEEDS = 100


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
