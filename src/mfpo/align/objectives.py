"""Preference objectives as pure functions of log-ratios (paper, section 3.2; docs/methods.md).

A log-ratio is log pi - log ref of an answer, summed over its tokens; a reward is beta times it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LogRatios:
    """The log-ratios of (y_w, m), (y_l, m) and (y_w, m'), each (batch,); the last is None where a method has no m'."""

    chosen: Tensor
    rejected: Tensor
    rejected_image: Tensor | None = None


@dataclass(frozen=True)
class Terms:
    """The parts of a loss, not averaged, each (batch,); None where a method has no such part."""

    text: Tensor
    image: Tensor | None = None
    margin: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """A registered method; `options` are the keyword arguments of `terms`, which are settings of the same name.

    `corruption` is the one kind of rejected image that makes the method what it is, `is_staged` says that it trains
    from easy to hard by default.
    """

    terms: Callable[..., Terms]
    options: frozenset[str]
    needs_rejected_images: bool
    corruption: str | None
    is_staged: bool


OBJECTIVES: dict[str, Objective] = {}


def objective(
    name: str, *, needs_rejected_images: bool, corruption: str | None = None, is_staged: bool = False
) -> Callable[[Callable[..., Terms]], Callable[..., Terms]]:
    """Register a function as `mfpo train --method NAME`."""

    def add(function: Callable[..., Terms]) -> Callable[..., Terms]:
        if name in OBJECTIVES:
            raise ValueError(f"two objectives are named {name!r}")
        options = frozenset(inspect.signature(function).parameters) - {"ratios"}
        OBJECTIVES[name] = Objective(function, options, needs_rejected_images, corruption, is_staged)
        return function

    return add


@objective("dpo", needs_rejected_images=False)
def dpo(ratios: LogRatios, *, beta: float = 0.1) -> Terms:
    """Direct preference optimization (Rafailov et al. 2023, equation 7): the text term alone, (batch,)."""
    return Terms(text=-F.logsigmoid(beta * (ratios.chosen - ratios.rejected)))


@objective("mfpo", needs_rejected_images=True, is_staged=True)
def mfpo(ratios: LogRatios, *, beta: float = 0.1, eta: float = 0.0) -> Terms:
    """Modality-fair preference loss (Jiang et al., IJCAI 2025, section 3.2): three terms per row, each (batch,).

    `eta` is the reward that the chosen answer has to exceed (the margin term).
    """
    if ratios.rejected_image is None:
        raise ValueError("this objective needs the log-ratios of (y_w, m')")
    chosen = beta * ratios.chosen
    return Terms(
        text=-F.logsigmoid(chosen - beta * ratios.rejected),
        image=-F.logsigmoid(chosen - beta * ratios.rejected_image),
        margin=-F.logsigmoid(chosen - eta),
    )


@objective("mdpo", needs_rejected_images=True, corruption="crop")
def mdpo(ratios: LogRatios, *, beta: float = 0.1) -> Terms:
    """Conditional preference optimization (mDPO, Wang et al. 2024): MFPO's terms with eta (there: delta) 0.

    What makes it mDPO is the data: its m' is a random crop of m, not noise in the key regions.
    """
    return mfpo(ratios, beta=beta, eta=0.0)


def total(terms: Terms, *, text: float = 1.0, image: float = 1.0, margin: float = 1.0) -> Tensor:
    """The weighted sum of the terms, (batch,); equal weights are the paper's best (Table 6)."""
    loss = text * terms.text
    if terms.image is not None:
        loss = loss + image * terms.image
    if terms.margin is not None:
        loss = loss + margin * terms.margin
    return loss
