"""Text and margin terms on the record and on its counterfactual."""

from typing import Annotated

from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.settings import about
from mfpo.train.objectives import Beta, LogRatios, Losses, log_sigmoid, need, objective


@objective(
    "counterfactual",
    terms=("text", "margin", "counter_text", "counter_margin"),
    cells=(*TEXT_AND_IMAGE, "counter_rejected_image"),
)
def counterfactual(
    ratios: LogRatios,
    *,
    beta: Beta = 0.1,
    eta: Annotated[float, about("reward that the right answer to an image must exceed")] = 0.0,
) -> Losses:
    """MFPO's text and margin terms twice, each (batch,): on m, where y_w is right and y_l is wrong, and on m', where y'
    is right and y_w is wrong.

    Our own. Each of y_w and y' is right under one image and wrong under the other, so that neither can be learnt
    without looking. Raises ValueError without the log-ratios of m'.
    """
    need(ratios, "rejected_image", "counter_rejected_image")
    chosen, counter = beta * ratios.chosen, beta * ratios.counter_rejected_image
    return {
        "text": -log_sigmoid(chosen - beta * ratios.rejected),
        "margin": -log_sigmoid(chosen - eta),
        "counter_text": -log_sigmoid(counter - beta * ratios.rejected_image),
        "counter_margin": -log_sigmoid(counter - eta),
    }
