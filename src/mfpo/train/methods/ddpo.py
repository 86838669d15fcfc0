"""RLHF-V's dense direct preference optimization."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Annotated

from mfpo.settings import about
from mfpo.train.objectives import Beta, LogRatios, Losses, log_sigmoid, objective

if TYPE_CHECKING:
    from torch import Tensor

# A stretch of equal tokens that is shorter counts as changed (thunlp/Muffin, utils/diff_lib.py).
_SHORTEST_MATCH = 3


def weigh_changed(
    prompt_ids: Tensor,
    answers: Sequence[Tensor],
    *,
    gamma: Annotated[float, about("weight of a changed token", above=0)] = 5.0,
    normalize: Annotated[bool, about("divide an answer's sum by the sum of its weights")] = True,
) -> tuple[Tensor, ...]:
    """`gamma` for the tokens in which y_w and y_l differ, 1 for the others; `normalize` divides by an answer's sum.

    `prompt_ids` (length,) and `answers`, each (tokens,), y_w before y_l; an answer without another one gets 1s. The
    defaults are the paper's (Yu et al. 2024, section 3.2); its code was released with gamma 1.1, beta 0.1 and no sum.
    """
    import torch

    weights = [torch.ones(len(answer)) for answer in answers]
    if len(answers) == 2:
        for weight, changed in zip(weights, changed_tokens(prompt_ids, *answers), strict=True):
            weight[changed] = gamma
    return tuple(weight / weight.sum() if normalize else weight for weight in weights)


def changed_tokens(prompt_ids: Tensor, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens of y_w and of y_l stand where the other has different ones, each (tokens,), bool.

    As RLHF-V's code finds them: a diff of prompt and answer without their first token, in which only what replaces
    something is changed, not what is added or left out.
    """
    import torch

    start = len(prompt_ids) - 1
    before = prompt_ids[1:].tolist()
    a, b = (before + answer.tolist() for answer in (rejected, chosen))
    changed_a, changed_b = torch.zeros(len(a), dtype=torch.bool), torch.zeros(len(b), dtype=torch.bool)
    end_a = end_b = 0
    # From 200 tokens on, autojunk starts no match at a token that is more than 1 % of them, as image tokens are.
    for match in SequenceMatcher(None, a, b, autojunk=True).get_matching_blocks():  # the last is empty and at both ends
        is_end = match.a == len(a) and match.b == len(b)
        if match.size < _SHORTEST_MATCH and not is_end:
            continue
        if match.a > end_a and match.b > end_b:
            changed_a[end_a : match.a], changed_b[end_b : match.b] = True, True
        end_a, end_b = match.a + match.size, match.b + match.size
    return changed_b[start:], changed_a[start:]


@objective("ddpo", terms=("text",), weigh=weigh_changed)
def ddpo(ratios: LogRatios, *, beta: Beta = 0.5) -> Losses:
    """Dense direct preference optimization (RLHF-V, Yu et al. 2024, section 3.2): DPO, (batch,), on sums in which the
    corrected segments weigh more (`weigh_changed`)."""
    return {"text": -log_sigmoid(beta * (ratios.chosen - ratios.rejected))}
