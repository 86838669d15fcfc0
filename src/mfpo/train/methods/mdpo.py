"""Conditional preference optimization (mDPO)."""

from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.train.methods.mfpo import mfpo
from mfpo.train.objectives import Beta, LogRatios, Losses, objective


@objective("mdpo", terms=("text", "image", "margin"), cells=TEXT_AND_IMAGE, corruption="crop")
def mdpo(ratios: LogRatios, *, beta: Beta = 0.1) -> Losses:
    """Conditional preference optimization (mDPO, Wang et al. 2024): MFPO's terms with eta (there: delta) 0.

    What makes it mDPO is the data: its m' is a random crop of m, not noise in the key regions.
    """
    return mfpo(ratios, beta=beta, eta=0.0)
