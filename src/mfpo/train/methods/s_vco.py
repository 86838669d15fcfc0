"""Symmetrical visual contrastive optimization (S-VCO)."""

from mfpo.train.objectives import Beta, LogRatios, Losses, log_sigmoid, need, objective

_CELLS = ("chosen", "counter", "rejected_image", "counter_rejected_image", "chosen_blind", "counter_blind")


@objective("s-vco", terms=("attend", "reject"), cells=_CELLS)
def s_vco(ratios: LogRatios, *, beta: Beta = 0.1) -> Losses:
    """S-VCO (Wu et al. 2025), each term (batch,): an answer is likelier with its own image than without an image
    (attend), and likelier without an image than with the other one (reject), for y_w and for y'.

    y_l is not read. Raises ValueError without the log-ratios of m', of y' or of the prompt without an image.
    """
    need(ratios, *_CELLS)
    attend = log_sigmoid(beta * (ratios.chosen - ratios.chosen_blind))
    attend_counter = log_sigmoid(beta * (ratios.counter_rejected_image - ratios.counter_blind))
    reject = log_sigmoid(beta * (ratios.chosen_blind - ratios.rejected_image))
    reject_counter = log_sigmoid(beta * (ratios.counter_blind - ratios.counter))
    return {"attend": -attend - attend_counter, "reject": -reject - reject_counter}
