"""The entropy of an answer that is given: over its own tokens as in section 3.3, or over the whole vocabulary."""

from typing import Any

import torch
from torch import Tensor, nn

from mfpo.align.prefix import LAYOUT, shares_prefix

# Logits over the vocabulary that exist at once: 128 MiB in float32.
_LOGITS = 1 << 25


def token_entropy(logps: Tensor) -> Tensor:
    """H = - sum over the answer's tokens of p_i log p_i, in nats (section 3.3, taken literally).

    `logps` is (rows, positions) with 0 outside the answer, where p log p vanishes; returns (rows,).

    >>> token_entropy(torch.tensor([[0.5, 0.25, 1.0]]).log()).item() / torch.tensor(2.0).log().item()
    1.0
    """
    return -(logps.exp() * logps).sum(dim=-1)


def predictive_entropy(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The entropy of the next token's distribution, in nats, as a mean over the answer's positions, (rows,).

    `batch` is one of `logprobs.collate` with one answer a row. Logits over the vocabulary exist for a chunk of tokens
    at a time; models that do not share prefixes, whose head may be followed by more, give those of all the answers.
    """
    batch = {name: value.to(model.device) for name, value in batch.items()}
    answer_mask = batch["answer_mask"]
    states, head = _before_head(model, batch)
    chunk = max(1, _LOGITS // model.config.get_text_config().vocab_size)
    by_token = torch.cat([_entropy(head(part).float()) for part in states.split(chunk)])
    entropies = torch.zeros_like(answer_mask, dtype=torch.float32).masked_scatter(answer_mask, by_token)
    return entropies.sum(dim=-1) / answer_mask.sum(dim=-1)


def _before_head(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, nn.Module]:
    """The states that predict the answers' tokens, (tokens, width), and what makes logits of them."""
    ids, answer_mask = batch["input_ids"], batch["answer_mask"]
    places, length = batch["predictors"][answer_mask], ids.shape[1]
    rows, columns = places // length, places % length
    inputs = {name: value for name, value in batch.items() if name not in LAYOUT}
    inputs |= {"input_ids": ids, "attention_mask": (batch["documents"] >= 0).long()}
    if shares_prefix(model):
        states = model.base_model(**inputs, use_cache=False).last_hidden_state
        return states[rows, columns], model.get_output_embeddings()
    first = int(columns.min())
    logits = model(**inputs, logits_to_keep=length - first, use_cache=False).logits
    return logits[rows, columns - first], nn.Identity()


def _entropy(logits: Tensor) -> Tensor:
    """(tokens, vocabulary) -> (tokens,)."""
    logps = logits.log_softmax(dim=-1)
    # A token that the model rules out has p log p = 0, not 0 times minus infinity.
    return torch.special.entr(logps.exp()).sum(dim=-1)
