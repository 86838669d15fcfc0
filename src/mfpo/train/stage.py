"""One stage of training: its records in order, its checkpoints, its lines of metrics."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset, Sampler

from mfpo.folders import write_text
from mfpo.logprobs.pairs import Pair, Pairs
from mfpo.train.settings import TrainSettings


class StageRecords(Dataset[tuple[Pair, bool]]):
    """The records of a stage, each with whether it counts; beyond the last one they come again and do not."""

    def __init__(self, pairs: Pairs, rows: Sequence[int]) -> None:
        self.pairs = pairs
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Pair, bool]:
        return self.pairs[self.rows[place % len(self)]], place < len(self)


class StageOrder(Sampler[int]):
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


def steps_per_epoch(records: int, settings: TrainSettings, processes: int) -> int:
    """How many steps of the optimizer an epoch takes."""
    batches = math.ceil(records / (settings.batch_size * processes))
    return math.ceil(batches / settings.gradient_accumulation)


@dataclass(frozen=True)
class StageLog:
    """Appends the metrics of one stage to `metrics.jsonl`, which counts steps over all stages."""

    path: Path
    stage: str
    first_step: int

    def write(self, metrics: dict[str, float], step: int) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, "step": self.first_step + step, **metrics}) + "\n")

    def forget_after(self, step: int) -> None:
        """Remove what a killed run wrote after its checkpoint at `step` of this stage."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= self.first_step + step]
        write_text(self.path, "".join(kept))


def last_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The newest checkpoint that was written to its end, and its step; None and 0 where there is none."""
    steps = [
        int(path.parent.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*/trainer_state.json")
    ]
    for step in sorted(steps, reverse=True):
        checkpoint = folder / f"checkpoint-{step}"
        try:  # written last, and not in one go: a kill may have cut it
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            continue
        return checkpoint, step
    return None, 0
