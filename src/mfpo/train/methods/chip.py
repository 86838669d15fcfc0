"""Cross-modal hierarchical direct preference optimization (CHiP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.settings import about
from mfpo.train.methods.ddpo import weigh_changed
from mfpo.train.objectives import Answers, Beta, LogRatios, Losses, divergence, log_sigmoid, need, objective

if TYPE_CHECKING:
    from torch import Tensor


def weigh_segments(
    prompt_ids: Tensor,
    answers: Sequence[Tensor],
    *,
    gamma: Annotated[float, about("weight of a changed token", above=0)] = 4.0,
) -> tuple[Tensor, ...]:
    """`gamma` for the tokens in which y_w and y_l differ, 1 for the others, not divided by their sum."""
    return weigh_changed(prompt_ids, answers, gamma=gamma, normalize=False)


@objective("chip", terms=("joint",), cells=TEXT_AND_IMAGE, weigh=weigh_segments)
def chip(
    ratios: LogRatios,
    policy: Answers,
    reference: Answers,
    *,
    beta: Beta = 0.1,
    kl_weight: Annotated[float, about("weight of the tokens' divergence from the reference", least=0)] = 0.1,
) -> Losses:
    """CHiP (Fu et al., ICLR 2025, as released): one sigmoid over the text margin, the image margin and the divergences
    of y_l and y_w from the reference, token by token, (batch,).

    The divergence of y_w has no gradient. Raises ValueError without the log-ratios of (y_w, m').
    """
    need(ratios, "rejected_image")
    text = ratios.chosen - ratios.rejected
    image = ratios.chosen - ratios.rejected_image
    tokens = divergence(policy.rejected, reference.rejected) - divergence(policy.chosen, reference.chosen).detach()
    return {"joint": -log_sigmoid(beta * (text + image - kl_weight * tokens))}
