"""Modality-fair preference optimization."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.settings import about
from mfpo.train.objectives import Beta, LogRatios, Losses, log_sigmoid, need, objective

_HINGE_MARGIN = 4.5


def _faults(settings: Mapping[str, Any]) -> list[str]:
    """Settings that the image loss does not read."""
    faults = []
    if settings["image_loss"] == "joint" and settings["image_weight"] != 1:
        faults.append(
            "image_loss=joint has one term for text and image, weighted by text_weight; leave image_weight out"
        )
    if settings["image_loss"] != "hinge" and settings["hinge_margin"] != _HINGE_MARGIN:
        faults.append("hinge_margin is for image_loss=hinge; set that too")
    return faults


@objective("mfpo", terms=("text", "image", "margin"), cells=TEXT_AND_IMAGE, is_staged=True, faults=_faults)
def mfpo(
    ratios: LogRatios,
    *,
    beta: Beta = 0.1,
    eta: Annotated[float, about("reward that the chosen answer must exceed; 0 is the best in Table 5")] = 0.0,
    image_loss: Annotated[
        Literal["sigmoid", "joint", "hinge"],
        about("the image term: the paper's, or bounded: in one sigmoid with the text (CHiP), or a hinge (PEA-DPO)"),
    ] = "sigmoid",
    hinge_margin: Annotated[
        float, about("image_loss=hinge: nats by which the log-ratio under m should exceed that under m'", above=0)
    ] = _HINGE_MARGIN,
) -> Losses:
    """Modality-fair preference loss (Jiang et al., IJCAI 2025, section 3.2): three terms per row, each (batch,).

    `eta` is the reward that the chosen answer has to exceed (the margin term). With `image_loss` "joint" the text term
    is one sigmoid of both margins, as in CHiP, and there is no image term. Raises ValueError without the log-ratios of
    (y_w, m').
    """
    need(ratios, "rejected_image")
    chosen = beta * ratios.chosen
    text_margin = chosen - beta * ratios.rejected
    image_margin = chosen - beta * ratios.rejected_image
    margin = {"margin": -log_sigmoid(chosen - eta)}
    if image_loss == "joint":
        return {"text": -log_sigmoid(text_margin + image_margin)} | margin
    text = {"text": -log_sigmoid(text_margin)}
    if image_loss == "hinge":
        return text | {"image": (beta * hinge_margin - image_margin).clamp(min=0)} | margin
    return text | {"image": -log_sigmoid(image_margin)} | margin
