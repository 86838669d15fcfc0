"""The order of records in training, and the number of steps."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Dataset, Sampler

from mfpo.logprobs.pairs import Pair, Pairs


class Records(Dataset[tuple[Pair, bool]]):
    """The records `rows` of `pairs`, each with whether it counts; beyond the last one they come again and do not."""

    def __init__(self, pairs: Pairs, rows: Sequence[int]) -> None:
        self.pairs = pairs
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Pair, bool]:
        return self.pairs[self.rows[place % len(self)]], place < len(self)


def all_of(pairs: Pairs) -> Records:
    """All records of `pairs`."""
    return Records(pairs, range(len(pairs)))


class Order(Sampler[int]):
    """The places 0, 1, ... of `records` in another order each epoch, then further ones up to a multiple of `multiple`.

    Several processes need batches that are as many and as large for each; what fills them up does not count.
    """

    def __init__(self, records: int, *, multiple: int, seed: int, epoch: Callable[[], int]) -> None:
        self.records = records
        self.length = math.ceil(records / multiple) * multiple
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        random = torch.Generator().manual_seed(self.seed + self.epoch())
        yield from torch.randperm(self.records, generator=random).tolist()
        yield from range(self.records, self.length)
