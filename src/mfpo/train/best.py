"""`keep_best`: the model with the best figure of held-out pairs, of all stages and checkpoints."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mfpo.errors import MfpoError
from mfpo.train.processes import as_first_says, processes


@dataclass(frozen=True)
class Best:
    """Where the figure `name` of `metrics`, a metrics.jsonl, was best; `is_more_better` says which way that is.

    The models are kept in `folder`, a folder for each step.
    """

    metrics: Path
    name: str
    is_more_better: bool
    folder: Path

    def line(self) -> dict[str, Any]:
        """The line of metrics with the best figure, the first of equals; an empty one while there is none."""
        lines = map(json.loads, self.metrics.read_text(encoding="utf-8").splitlines())
        sign = 1 if self.is_more_better else -1
        measured = [line for line in lines if math.isfinite(line.get(self.name, math.nan))]
        return max(measured, key=lambda line: sign * line[self.name], default={})

    def model(self, step: int) -> Path:
        """Where the model of a step is kept."""
        return self.folder / f"best-{step}"


class KeepBest(TrainerCallback):
    """Keeps the model after each evaluation that was the best so far; `save` writes it as a folder.

    `first_step` is the number of steps of the stages before.
    """

    def __init__(self, best: Best, first_step: int, save: Callable[[Path], None]) -> None:
        self.best, self.first_step, self.save = best, first_step, save

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the model if it is the best."""
        step = self.first_step + state.global_step
        if as_first_says(processes().is_main_process and not self.best.line()):
            raise MfpoError(f"keep_best is {self.best.name}, which these held-out pairs do not have; choose another")
        model = self.best.model(step)
        is_best = processes().is_main_process and self.best.line().get("step") == step and not model.exists()
        if as_first_says(is_best):
            self.save(model)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the models that are no longer the best: only now, as a killed run goes on from a checkpoint."""
        if processes().is_main_process:
            best_model = self.best.model(self.best.line().get("step", -1))
            for model in self.best.folder.glob("best-*"):
                if model != best_model:
                    shutil.rmtree(model)
