"""Modality-fair preference optimization."""

from typing import Annotated, Literal

from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.settings import about
from mfpo.train.objectives import Beta, LogRatios, Losses, log_sigmoid, need, objective


@objective("mfpo", terms=("text", "image", "margin"), cells=TEXT_AND_IMAGE, is_staged=True)
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
        float, about("nats by which image_loss=hinge wants the log-ratio under m above that under m'", above=0)
    ] = 4.5,
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
