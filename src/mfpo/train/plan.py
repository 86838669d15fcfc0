"""The stages of a training (section 3.3): one for each level of the records, easy first, or one for all."""

import itertools
from collections.abc import Sequence
from typing import Any

import datasets
import torch

from mfpo.dataset import column
from mfpo.errors import MfpoError
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.sequences import token_logps
from mfpo.rank.entropy import token_entropy
from mfpo.rank.levels import cut_levels, level_names, stages
from mfpo.train.policy import precision
from mfpo.train.processes import gathered, share
from mfpo.train.settings import TrainSettings

# The stages in order: each one's name and the rows of its records.
Plan = list[tuple[str, list[int]]]


def plan_stages(dataset: datasets.Dataset, settings: TrainSettings, where: str) -> Plan:
    """The stages. Raises MfpoError, which says `where`, when the levels say nothing or one has no records."""
    if not settings.curriculum:
        return [("all", list(range(len(dataset))))]
    plan = stages(column(dataset, "level"))
    names = {name for name, _ in plan}
    count = next(count for count in itertools.count(len(names)) if names <= {*level_names(count)})
    empty = [name for name in level_names(count) if name not in names]
    if empty:
        raise MfpoError(
            f"{where}: level {', '.join(empty)} has no records; rank more records, or set curriculum=false to train on "
            "all at once"
        )
    if "entropy" in dataset.column_names and len(set(column(dataset, "entropy"))) == 1 < len(dataset):
        raise MfpoError(
            f"{where}: all records have the same entropy, so their levels mean nothing; rank them with another "
            "model or entropy, or set curriculum=false"
        )
    return plan


def rerank(policy: Any, pairs: Pairs, left: Sequence[tuple[str, list[int]]], settings: TrainSettings) -> Plan:
    """The stages that are left with their records cut anew, by the entropies that `policy` gives them."""
    rows = sorted(row for _, rows in left for row in rows)
    measured: dict[int, float] = {}
    mine = share(rows)
    for start in range(0, len(mine), settings.per_device_train_batch_size):
        batch = mine[start : start + settings.per_device_train_batch_size]
        encoded = pairs.collate([pairs[row].only(("chosen",)) for row in batch])
        encoded.pop("rows")
        with torch.inference_mode(), precision(settings):
            values = token_entropy(token_logps(policy, encoded))
        measured |= dict(zip(batch, values.tolist(), strict=True))
    entropies = gathered(measured)
    levels = cut_levels([entropies[row] for row in rows], [pairs.ids[row] for row in rows], len(left))
    parts = [[rows[place] for place in places] for _, places in stages(levels)]
    return [(name, part) for (name, _), part in zip(left, parts, strict=True)]
