"""Hallucination-aware direct preference optimization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from mfpo.settings import about
from mfpo.train.methods.dpo import dpo
from mfpo.train.objectives import Beta, LogRatios, Losses, objective

if TYPE_CHECKING:
    from torch import Tensor


@objective("ha-dpo", terms=("text", "lm"))
def ha_dpo(
    ratios: LogRatios,
    chosen_nll: Tensor,
    *,
    beta: Beta = 0.1,
    lm_weight: Annotated[float, about("weight of the language-model term", least=0)] = 0.5,
) -> Losses:
    """DPO with a language-model term on y_w (HA-DPO, Zhao et al. 2023), each (batch,).

    `chosen_nll` is the policy's mean -log p of y_w's tokens. The authors' code has the term, with weight 0.5, on other
    captions and for MiniGPT-4 only; `lm_weight` 0 is what it does for LLaVA.
    """
    return dpo(ratios, beta=beta) | {"lm": lm_weight * chosen_nll}
