"""Attention over a row of documents [prompt | answer | answer ...], one after another, each by torch's fused kernels.

A mask over all pairs of a row's tokens would hide most of what is computed: the other documents, the other answers,
and of the prompt, which has most of the tokens, what comes later.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# What `set_attn_implementation` knows it by.
BY_DOCUMENT = "sdpa_by_document"


def lengths_of(batch: dict[str, Tensor]) -> Tensor:
    """How long prompt and answers of each document are, (1, 1, documents, 1 + answers), in a batch of one packed row.

    In the form of a prepared mask, as transformers' models hand such a one down to their attention as it is.
    """
    documents, numbers = batch["documents"][0], batch["answer_numbers"][0]
    lengths = documents.new_zeros(1, 1, int(documents.max()) + 1, int(numbers.max()) + 1)
    lengths[0, 0].index_put_((documents, numbers), documents.new_ones(()), accumulate=True)
    return lengths


def attend_by_document(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention in which a token sees itself and what is before it in its document's prompt and in its own answer.

    `query`, `key` and `value` are (1, heads, tokens, width), `attention_mask` is what `lengths_of` gives. The result is
    (1, tokens, heads, width). With any other mask it is transformers' `sdpa`.
    """
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    documents = attention_mask[0, 0].tolist()
    states = (part.split([sum(lengths) for lengths in documents], dim=2) for part in (query, key, value))
    outputs = []
    for (prompt, *answers), q, k, v in zip(documents, *states, strict=True):
        of_prompt, of_answers = q.split([prompt, sum(answers)], dim=2)
        to_answers = _mask(prompt, answers, q.device)
        outputs += [
            sdpa_attention_forward(module, of_prompt, k[:, :, :prompt], v[:, :, :prompt], None, **options)[0],
            sdpa_attention_forward(module, of_answers, k, v, to_answers, **options)[0],
        ]
    return torch.cat(outputs, dim=1), None


def _mask(prompt: int, answers: list[int], device: torch.device) -> Tensor:
    """What the tokens of `answers` see of their document, (1, 1, tokens of all answers, tokens)."""
    numbers = torch.arange(len(answers)).repeat_interleave(torch.tensor(answers))
    own = (numbers[:, None] == numbers).tril()
    return torch.cat([own.new_ones(len(own), prompt), own], dim=1)[None, None].to(device)


AttentionInterface.register(BY_DOCUMENT, attend_by_document)
AttentionMaskInterface.register(BY_DOCUMENT, sdpa_mask)
