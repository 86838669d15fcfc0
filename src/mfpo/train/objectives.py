"""What a preference method is: a pure function from a batch's log-ratios or logits to its losses (docs/methods.md).

A log-ratio is log pi - log ref of an answer, summed over its tokens; a reward is beta times it. The methods themselves
are in `mfpo.train.methods`, a file each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

# The methods are imported to check settings: torch only where one computes, so that a wrong one is told at once.
if TYPE_CHECKING:
    from torch import Tensor

    from mfpo.logprobs.pairs import Weigh

# The parts of a loss by name, not averaged, each (batch,).
Losses: TypeAlias = "dict[str, Tensor]"


@dataclass(frozen=True)
class LogRatios:
    """The log-ratios of (y_w, m), (y_l, m) and (y_w, m'), each (batch,); the last is None where a method has no m'."""

    chosen: Tensor
    rejected: Tensor
    rejected_image: Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """An answer of each record under a model that reads it.

    `logits` (batch, tokens, vocabulary), in float32, predict the tokens `ids` (batch, tokens); `mask` is False behind
    an answer's end.
    """

    logits: Tensor
    ids: Tensor
    mask: Tensor

    def logps(self) -> Tensor:
        """log p of each token, (batch, tokens); 0 outside the answer."""
        logps = self.logits.gather(-1, self.ids[..., None]).squeeze(-1) - self.logits.logsumexp(-1)
        return logps.masked_fill(~self.mask, 0.0)


@dataclass(frozen=True)
class Answers:
    """(y_w, m), (y_l, m) and (y_w, m') of each record; the last is None where a method has no m'."""

    chosen: Answer
    rejected: Answer
    rejected_image: Answer | None = None


@dataclass(frozen=True)
class Objective:
    """A registered method.

    `terms` names its losses. `inputs` are the positional arguments of `losses`, which the trainer hands over by name:
    `ratios`, `chosen_nll`, `policy`, `reference`, `end_ids` or `features` (`mfpo.train.inputs`). Its keyword arguments,
    and those of `weigh`, are settings of the same name.

    `corruption` is the one kind of rejected image that makes the method what it is, `is_staged` says that it trains
    from easy to hard by default, `weigh` weighs the tokens of the sums that log-ratios are made of.
    """

    losses: Callable[..., Losses]
    terms: tuple[str, ...]
    inputs: frozenset[str]
    needs_rejected_images: bool
    corruption: str | None
    is_staged: bool
    weigh: Weigh | None

    @property
    def options(self) -> dict[str, Any]:
        """All keyword arguments with their defaults."""
        return keyword_defaults(self.losses) | (keyword_defaults(self.weigh) if self.weigh else {})

    @property
    def reads_logits(self) -> bool:
        """Whether log-probabilities are not enough for it."""
        return not {"policy", "reference"}.isdisjoint(self.inputs)


OBJECTIVES: dict[str, Objective] = {}


def objective(
    name: str,
    *,
    terms: tuple[str, ...],
    needs_rejected_images: bool = False,
    corruption: str | None = None,
    is_staged: bool = False,
    weigh: Weigh | None = None,
) -> Callable[[Callable[..., Losses]], Callable[..., Losses]]:
    """Register a function as `mfpo train --method NAME`. Raises ValueError when the name is taken."""

    def add(function: Callable[..., Losses]) -> Callable[..., Losses]:
        if name in OBJECTIVES:
            raise ValueError(f"two objectives are named {name!r}")
        inputs = frozenset(inspect.signature(function).parameters.keys() - keyword_defaults(function).keys())
        OBJECTIVES[name] = Objective(function, terms, inputs, needs_rejected_images, corruption, is_staged, weigh)
        return function

    return add


def keyword_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only arguments of a function and their defaults."""
    parameters = inspect.signature(function).parameters.items()
    return {name: parameter.default for name, parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY}


def log_sigmoid(values: Tensor) -> Tensor:
    """log sigmoid of each value."""
    from torch.nn.functional import logsigmoid

    return logsigmoid(values)


def total(losses: Losses, *, text: float = 1.0, image: float = 1.0, margin: float = 1.0) -> Tensor:
    """The sum of the losses, (batch,), three of which have a weight; equal ones are the paper's best (Table 6)."""
    weights = {"text": text, "image": image, "margin": margin}
    return sum((weights.get(name, 1.0) * loss for name, loss in losses.items()), start=next(iter(losses.values())) * 0)
