"""What a run at the paper's scale costs, told before it begins."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from mfpo.study.real import RealScale
from mfpo.study.statistics import LOGPS, Scores
from mfpo.study.study import NotOnScale, Scale, Study
from mfpo.study.trials import Trial

# The estimate: a pair is two images of 600 tokens and three answers of 100; each weight takes 6 FLOPs a token to train,
# 2 to compute anew and 2 in the reference. OPERA and VCD take longer than an answer here.
_FLOPS, _TOKENS, _FLOPS_A_WEIGHT, _SECONDS_AN_ANSWER = 0.4 * 312e12, 2 * 600 + 3 * 100, 10, 0.25
BASIS = "an A100 at 40 % of its 312 TFLOP/s, 1,500 tokens a pair, 0.25 s an answer of 7 B; nothing of it was measured"

# Requests of a judge for each answer; LLaVA-Bench shows it two answers in both orders.
_JUDGED = {"objhal": 1, "mmhal": 1, "llava_bench": 2}


class _Looked(Exception):
    """The experiment looks into a training or at data, of which there are none yet."""


class _WithoutData:
    """A scale that has no data yet."""

    def __init__(self, scale: Scale) -> None:
        self._scale = scale

    def __getattr__(self, name: str) -> Any:
        if name in ("data", "scored_pairs", "checked", "score"):
            raise _Looked
        return getattr(self._scale, name)


class Plan(Study):
    """Takes down what experiments ask for: `scored` trials and `trainings`, by name, each with its seed."""

    def __init__(self, study: Study) -> None:
        super().__init__(study.out, cast(Scale, _WithoutData(study.scale)), study.seeds, study.console)
        self.scored: dict[str, tuple[Trial, int]] = {}
        self.trainings: dict[str, tuple[Trial, int]] = {}

    def scores(self, trial: Trial, model: Callable[[int], Path] | None = None) -> list[Scores]:
        """Random numbers, in place of the scores that are wanted."""
        trial, random = self.with_rate(trial), np.random.default_rng(0)
        for seed in self.seeds:
            name = f"{trial.key(self.scale.context)}-{seed}"
            if not (self.out / "scores" / f"{name}.json").exists():
                self.scored[name] = trial, seed
                self.model(trial, seed)
        names = [*self.scale.figures, *self.scale.question_types, *LOGPS]
        return [{name: np.stack([random.random(8), np.ones(8)], axis=1) for name in names} for _ in self.seeds]

    def model(self, trial: Trial, seed: int) -> Path:
        """A folder that has no model."""
        if trial.method is not None:
            trial = replace(self.with_rate(trial), stage=None, decode="greedy")
            name = f"{trial.key(self.scale.trained_on)}-{seed}"
            if not (self.out / "runs" / name).exists():
                self.trainings[name] = trial, seed
        return self.out

    def run(self, trial: Trial, seed: int) -> Path:
        self.model(trial, seed)
        raise _Looked


@dataclass(frozen=True)
class Cost:
    """What is to be done: answers by benchmark, trainings, the pairs that they see, hours of a GPU, judge calls."""

    answers: Mapping[str, int]
    trainings: int
    pairs: float
    hours: float
    judge_calls: int

    def __str__(self) -> str:
        by_benchmark = ", ".join(f"{name} {count:,}" for name, count in self.answers.items())
        return (
            f"to do: {sum(self.answers.values()):,} answers ({by_benchmark}), {self.trainings} trainings "
            f"({self.pairs:,.0f} pairs, each epoch counted), {self.judge_calls:,} judge calls; about {self.hours:,.1f} "
            f"hours of one GPU besides building and ranking ({BASIS})"
        )


def cost(study: Study, scale: RealScale, experiments: Iterable[Callable[[Study], object]]) -> Cost:
    """What the experiments still have to do; what is kept, and answers that are given, cost nothing."""
    plan = Plan(study)
    for experiment in experiments:
        try:
            experiment(plan)
        except (_Looked, NotOnScale):
            continue
    sizes = scale.questions()
    files = {
        scale.answer_file(name, trial, seed): (name, dict(trial.other))
        for trial, seed in plan.scored.values()
        for name in sizes
    }
    asked = [(name, other) for file, (name, other) in files.items() if "answers" not in other and not file.exists()]
    answers = {name: size * sum(benchmark == name for benchmark, _ in asked) for name, size in sizes.items()}
    calls = sum(sizes[name] * _JUDGED.get(name, 0) for name, _ in files.values()) if scale.judge else 0
    pairs = sum(_pairs(plan, *of) for of in plan.trainings.values())
    weights = sum(file.stat().st_size for file in scale.base.glob("*.safetensors")) / 2  # of two bytes each
    seconds = pairs * _TOKENS * _FLOPS_A_WEIGHT * weights / _FLOPS
    seconds += sum(sizes[name] for name, other in asked if "endpoint" not in other) * _SECONDS_AN_ANSWER * weights / 7e9
    return Cost(answers, len(plan.trainings), pairs, seconds / 3600, calls)


def _pairs(plan: Plan, trial: Trial, seed: int) -> float:
    """The pairs that a training sees, each epoch counted."""
    records = (trial.data.pairs or plan.scale.pairs) * trial.data.records_a_pair
    return records * plan.settings(trial, seed).num_train_epochs
