"""Direct preference optimization."""

from mfpo.train.objectives import Beta, LogRatios, Losses, log_sigmoid, objective


@objective("dpo", terms=("text",))
def dpo(ratios: LogRatios, *, beta: Beta = 0.1) -> Losses:
    """Direct preference optimization (Rafailov et al. 2023, equation 7): the text term alone, (batch,)."""
    return {"text": -log_sigmoid(beta * (ratios.chosen - ratios.rejected))}
