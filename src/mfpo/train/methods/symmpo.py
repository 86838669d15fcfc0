"""Symmetric multimodal preference optimization (SymMPO)."""

from typing import Annotated

from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.settings import about
from mfpo.train.objectives import Beta, LogRatios, Losses, log_sigmoid, need, objective


@objective(
    "symmpo",
    terms=("text", "symmetric", "margin", "consistency"),
    cells=(*TEXT_AND_IMAGE, "counter", "counter_rejected_image"),
)
def symmpo(
    ratios: LogRatios,
    *,
    beta: Beta = 0.1,
    symmetric_weight: Annotated[float, about("weight of the answers compared under either image", least=0)] = 0.5,
    consistency_weight: Annotated[float, about("weight of the squared difference of their margins", least=0)] = 1e-4,
) -> Losses:
    """SymMPO (Liu et al., NeurIPS 2025), each term (batch,).

    Answers are compared under one image, never images under one answer, so that the normalizing constant of the image
    cancels: y_w over y_l and over y' under m, y' over y_w under m'. The margin term anchors each answer under its own
    image. Raises ValueError without the log-ratios of y' or of m'.
    """
    need(ratios, "rejected_image", "counter", "counter_rejected_image")
    under_image = ratios.chosen - ratios.counter
    under_rejected_image = ratios.counter_rejected_image - ratios.rejected_image
    symmetric = log_sigmoid(beta * under_image) + log_sigmoid(beta * under_rejected_image)
    return {
        "text": -log_sigmoid(beta * (ratios.chosen - ratios.rejected)),
        "symmetric": -symmetric_weight * symmetric,
        "margin": -log_sigmoid(beta * ratios.chosen) - log_sigmoid(beta * ratios.counter_rejected_image),
        "consistency": consistency_weight * (under_image - under_rejected_image) ** 2,
    }
