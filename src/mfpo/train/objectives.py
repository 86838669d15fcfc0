"""Preference methods: pure functions from a batch's log-ratios or logits to its losses (docs/methods.md).

A log-ratio is log pi - log ref of an answer, summed over its tokens; a reward is beta times it. The methods themselves
are in `mfpo.train.methods`, a file each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from mfpo.errors import SettingError, brief, nearest
from mfpo.logprobs.cells import CELLS, TEXT, ByCell, columns
from mfpo.registry import Registry
from mfpo.settings import about

# The methods are imported to check settings: torch only where one computes, so that a wrong one is told at once.
if TYPE_CHECKING:
    from torch import Tensor

    from mfpo.logprobs.pairs import Weigh

# The setting that most methods have.
Beta: TypeAlias = Annotated[float, about("weight of a log-ratio in a reward; 0.1 is usual for RLHF-V data", above=0)]

# From all settings by name to one sentence for each contradiction.
Faults: TypeAlias = Callable[[Mapping[str, Any]], list[str]]

# The parts of a loss by name, not averaged, each (batch,).
Losses: TypeAlias = "dict[str, Tensor]"


@dataclass(frozen=True)
class LogRatios(ByCell["Tensor"]):
    """The log-ratio of each cell that the method names, (batch,): `chosen` is (y_w, m), `rejected` (y_l, m), ..."""


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
class Answers(ByCell[Answer]):
    """The answer of each cell that the method names."""


@dataclass(frozen=True)
class Objective:
    """A registered method.

    `terms` names its losses. `inputs` are the positional arguments of `losses`, which the trainer passes by name:
    `ratios`, `chosen_nll`, `policy`, `reference`, `end_ids` (`mfpo.train.inputs`), and the outputs of `prepare`.
    Its keyword arguments annotated with `about`, and those of `weigh`, are the method's settings.

    `cells` are the answers and images that it reads, of `mfpo.logprobs.cells.CELLS`; `chosen` is always among them.
    `corruption` is the one kind of rejected image that defines the method; `is_staged` means that it trains
    from easy to hard by default; `weigh` weights the tokens in the log-ratios' sums. `prepare` is for additional
    inputs: called with the model and the records (`Pairs`), it returns an object whose `collate` turns the
    `Pair`s of a batch into tensors for the model's device; for each input the object has a method that computes
    it from the model and these tensors. `faults` gets all settings by name and tells which contradict each other.
    """

    losses: Callable[..., Losses]
    terms: tuple[str, ...]
    inputs: frozenset[str]
    cells: tuple[str, ...]
    corruption: str | None
    is_staged: bool
    weigh: Weigh | None
    prepare: Callable[..., Any] | None
    faults: Faults

    def __post_init__(self) -> None:
        # By its module the registry knows the package's own methods.
        object.__setattr__(self, "__module__", self.losses.__module__)

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """The functions that bring the method's settings."""
        return (self.losses, self.weigh) if self.weigh else (self.losses,)

    @property
    def weighted_terms(self) -> tuple[str, ...]:
        """The terms that `total` weighs; the function weighs those itself for which it has an argument TERM_weight."""
        arguments = _keywords(self.losses)
        return tuple(term for term in self.terms if f"{term}_weight" not in arguments)

    @property
    def needs_rejected_images(self) -> bool:
        """Whether a record needs m'."""
        return "rejected_images" in columns(self.cells)

    @property
    def reads_logits(self) -> bool:
        """Whether log-probabilities are not enough for it."""
        return not {"policy", "reference"}.isdisjoint(self.inputs)


# What `mfpo.train.inputs` brings.
INPUTS = ("ratios", "chosen_nll", "policy", "reference", "end_ids")

OBJECTIVES: Registry[Objective] = Registry(
    "method",
    "mfpo.train.methods",
    (
        "mfpo",
        "dpo",
        "mdpo",
        "ddpo",
        "ha-dpo",
        "povid",
        "halva",
        "eos",
        "hacl",
        "chip",
        "symmpo",
        "s-vco",
        "counterfactual",
    ),
)


def objective(
    name: str,
    *,
    terms: tuple[str, ...],
    cells: tuple[str, ...] = TEXT,
    corruption: str | None = None,
    is_staged: bool = False,
    weigh: Weigh | None = None,
    prepare: Callable[..., Any] | None = None,
    faults: Faults = lambda settings: [],
) -> Callable[[Callable[..., Losses]], Callable[..., Losses]]:
    """Register a function as `mfpo train --method NAME`; the arguments are those of `Objective`.

    Raises SettingError when the package has a method of that name, or the function requests an unknown input or cell.
    """
    _check_cells(name, cells, is_weighed=weigh is not None)

    def add(function: Callable[..., Losses]) -> Callable[..., Losses]:
        inputs = frozenset(inspect.signature(function).parameters) - _keywords(function)
        unknown = inputs.difference(INPUTS, dir(prepare))
        if unknown:
            raise SettingError(
                f"method {name} asks for {', '.join(sorted(unknown))}, but the inputs are {', '.join(INPUTS)}; "
                "a setting must be keyword-only"
            )
        OBJECTIVES.add(name, Objective(function, terms, inputs, cells, corruption, is_staged, weigh, prepare, faults))
        return function

    return add


def _check_cells(name: str, cells: tuple[str, ...], *, is_weighed: bool) -> None:
    unknown = next((cell for cell in cells if cell not in CELLS), None)
    if unknown:
        raise SettingError(f"method {name} names an unknown cell {brief(unknown)}; {nearest(unknown, CELLS)}")
    missing = [cell for cell in (TEXT if is_weighed else ("chosen",)) if cell not in cells]
    if missing:
        raise SettingError(f"method {name} needs {', '.join(missing)} among its cells")


def _keywords(function: Callable[..., Any]) -> frozenset[str]:
    """The names of a function's keyword-only arguments."""
    parameters = inspect.signature(function).parameters.values()
    return frozenset(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def need(values: LogRatios | Answers, *cells: str) -> None:
    """Raises ValueError when one of the cells is not there."""
    missing = ", ".join(name for name in cells if getattr(values, name) is None)
    if missing:
        raise ValueError(f"this objective needs {missing} of {type(values).__name__}")


def divergence(policy: Answer, reference: Answer) -> Tensor:
    """The divergence of the reference to the policy, KL(ref, pi), at each token of an answer, summed, (batch,)."""
    log_p, log_q = reference.logits.log_softmax(-1), policy.logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).masked_fill(~policy.mask, 0.0).sum(-1)


def log_sigmoid(values: Tensor) -> Tensor:
    """log sigmoid of each value."""
    from torch.nn.functional import logsigmoid

    return logsigmoid(values)


def total(losses: Losses, **weights: float) -> Tensor:
    """The sum of the losses, (batch,), each times its weight, 1 by default."""
    return sum((weights.get(name, 1.0) * loss for name, loss in losses.items()), start=next(iter(losses.values())) * 0)
