"""Preference optimization with a hallucinated text and a noised image on the rejected side (POVID)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.train.methods.dpo import dpo
from mfpo.train.objectives import Answers, Beta, LogRatios, Losses, log_sigmoid, need, objective

if TYPE_CHECKING:
    from torch import Tensor


@objective("povid", terms=("text", "image"), cells=TEXT_AND_IMAGE, corruption="global")
def povid(ratios: LogRatios, policy: Answers, reference: Answers, *, beta: Beta = 0.1) -> Losses:
    """POVID's second stage (Zhou et al. 2024, as released): DPO against y_l and against what a model says of a noised
    image, half each, (batch,).

    m' is the noised image. Policy and reference have their own rejected text, `said_of_noise`. The authors start from
    a model trained by DPO, which is then the reference too.
    """
    noise = said_of_noise(policy) - said_of_noise(reference)
    image = -log_sigmoid(beta * (ratios.chosen - noise))
    return {"text": 0.5 * dpo(ratios, beta=beta)["text"], "image": 0.5 * image}


def said_of_noise(answers: Answers) -> Tensor:
    """log p under the clean image of the likeliest token under m' at each place of y_w, summed, (batch,).

    Raises ValueError without the answers of (y_w, m').
    """
    need(answers, "rejected_image")
    clean = answers.chosen
    likeliest = answers.rejected_image.logits.argmax(-1)
    logps = clean.logits.gather(-1, likeliest[..., None]).squeeze(-1) - clean.logits.logsumexp(-1)
    return logps.masked_fill(~clean.mask, 0.0).sum(-1)
