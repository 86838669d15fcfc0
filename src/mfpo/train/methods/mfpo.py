"""Modality-fair preference optimization."""

from typing import Annotated

from mfpo.settings import about
from mfpo.train.objectives import Beta, LogRatios, Losses, log_sigmoid, objective


@objective("mfpo", terms=("text", "image", "margin"), needs_rejected_images=True, is_staged=True)
def mfpo(
    ratios: LogRatios,
    *,
    beta: Beta = 0.1,
    eta: Annotated[float, about("reward that the chosen answer must exceed; 0 is the best in Table 5")] = 0.0,
) -> Losses:
    """Modality-fair preference loss (Jiang et al., IJCAI 2025, section 3.2): three terms per row, each (batch,).

    `eta` is the reward that the chosen answer has to exceed (the margin term). Raises ValueError without the
    log-ratios of (y_w, m').
    """
    if ratios.rejected_image is None:
        raise ValueError("this objective needs the log-ratios of (y_w, m')")
    chosen = beta * ratios.chosen
    return {
        "text": -log_sigmoid(chosen - beta * ratios.rejected),
        "image": -log_sigmoid(chosen - beta * ratios.rejected_image),
        "margin": -log_sigmoid(chosen - eta),
    }
