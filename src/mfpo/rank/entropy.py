"""The entropy of an answer that is given: over its own tokens as in section 3.3, or over the whole vocabulary."""

from typing import Any

import torch
from torch import Tensor

from mfpo.logprobs.sequences import answer_scores, by_token, in_chunks


def token_entropy(logps: Tensor) -> Tensor:
    """H = - sum over the answer's tokens of p_i log p_i, in nats (section 3.3, taken literally).

    `logps` is (rows, positions) with 0 outside the answer, where p log p vanishes; returns (rows,).

    >>> token_entropy(torch.tensor([[0.5, 0.25, 1.0]]).log()).item() / torch.tensor(2.0).log().item()
    1.0
    """
    return -(logps.exp() * logps).sum(dim=-1)


def predictive_entropy(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The entropy of the next token's distribution, in nats, as a mean over the answer's positions, (rows,).

    `batch` is one of `logprobs.collate` with one answer a row.
    """
    entropies = by_token(answer_scores(model, batch, in_chunks(model, _entropy)), batch)
    return entropies.sum(dim=-1) / batch["answer_mask"].to(entropies.device).sum(dim=-1)


def _entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """(tokens, vocabulary) -> (tokens,)."""
    logps = logits.log_softmax(dim=-1)
    # A token that the model rules out has p log p = 0, not 0 times minus infinity.
    return torch.special.entr(logps.exp()).sum(dim=-1)
