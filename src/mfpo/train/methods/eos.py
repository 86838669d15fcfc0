"""Selective end-of-sequence supervision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfpo.train.objectives import Answers, Losses, objective

if TYPE_CHECKING:
    from torch import Tensor


@objective("eos", terms=("lm",))
def eos(policy: Answers, end_ids: Tensor) -> Losses:
    """Selective EOS supervision (Yue et al. 2024, "Less is more"): a language-model loss on y_w, (batch,).

    Where the label is no end token, the softmax excludes the end tokens, so they are never lowered to make the model
    continue. `end_ids` (ids,) are the tokenizer's end tokens. The mean over the batch is the mean over all its tokens.
    """
    import torch

    answer = policy.chosen
    is_end = torch.isin(answer.ids, end_ids)
    vocabulary = torch.arange(answer.logits.shape[-1], device=end_ids.device)
    hidden = torch.isin(vocabulary, end_ids) & ~is_end[..., None]
    logps = answer.logits.masked_fill(hidden, -torch.inf).log_softmax(-1)
    nll = -logps.gather(-1, answer.ids[..., None]).squeeze(-1).masked_fill(~answer.mask, 0.0)
    return {"lm": nll.sum(-1) * len(nll) / answer.mask.sum()}
