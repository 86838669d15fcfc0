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


def with_images(lengths: Tensor, batch: dict[str, Tensor], types: Tensor) -> Tensor:
    """`lengths_of` with the images, whose tokens see each other both ways, (1, 2, documents, numbers).

    Behind the lengths, filled up with zeros, are the places in the prompt where each image begins and where it has
    ended. `types` are the tokens' types, (1, tokens), which are not 0 in an image.
    """
    is_image = (types[0] != 0) & (batch["answer_numbers"][0] == 0)
    is_first, is_last = is_image.clone(), is_image.clone()
    is_first[1:] &= ~is_image[:-1]
    is_last[:-1] &= ~is_image[1:]
    places, documents = batch["position_ids"][0], batch["documents"][0]
    ends = torch.stack([places[is_first], places[is_last] + 1], dim=1)
    by_document = [ends[documents[is_first] == number].flatten() for number in range(lengths.shape[2])]
    spans = nn.utils.rnn.pad_sequence(by_document, batch_first=True)
    width = max(lengths.shape[3], spans.shape[1])
    both = [nn.functional.pad(part, (0, width - part.shape[1])) for part in (lengths[0, 0], spans)]
    return torch.stack(both)[None]


def attend_by_document(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention in which a token sees itself and what is before it in its document's prompt and in its own answer.

    `query`, `key` and `value` are (1, heads, tokens, width), `attention_mask` is what `lengths_of` or `with_images`
    gives; of `options`, `sliding_window` is how far back a token sees. The result is (1, tokens, heads, width). With
    any other mask it is transformers' `sdpa`.
    """
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    window, device = options.get("sliding_window"), query.device
    documents, *images = attention_mask[0].tolist()
    states = (part.split([sum(lengths) for lengths in documents], dim=2) for part in (query, key, value))
    outputs = []
    for number, ((prompt, *answers), q, k, v) in enumerate(zip(documents, *states, strict=True)):
        of_prompt, of_answers = q.split([prompt, sum(answers)], dim=2)
        to_prompt = _prompt_mask(prompt, images[0][number] if images else [], window, device)
        to_answers = _answer_mask(prompt, answers, window, device)
        outputs += [
            sdpa_attention_forward(module, of_prompt, k[:, :, :prompt], v[:, :, :prompt], to_prompt, **options)[0],
            sdpa_attention_forward(module, of_answers, k, v, to_answers, **options)[0],
        ]
    return torch.cat(outputs, dim=1), None


def _prompt_mask(prompt: int, images: list[int], window: int | None, device: torch.device) -> Tensor | None:
    """What the prompt's tokens see of it, (1, 1, prompt, prompt); None where that is all before them."""
    if not any(images) and (window is None or prompt <= window):
        return None
    place = torch.arange(prompt, device=device)
    ahead = place - place[:, None]
    sees = ahead <= 0
    for start, end in zip(images[::2], images[1::2], strict=False):
        sees[start:end, start:end] = True
    return (sees if window is None else sees & (ahead > -window))[None, None]


def _answer_mask(prompt: int, answers: list[int], window: int | None, device: torch.device) -> Tensor:
    """What the tokens of `answers` see of their document, (1, 1, tokens of all answers, tokens)."""
    numbers = torch.arange(len(answers)).repeat_interleave(torch.tensor(answers))
    same_answer = (numbers[:, None] == numbers).tril()
    sees = torch.cat([same_answer.new_ones(len(same_answer), prompt), same_answer], dim=1)
    if window is not None:
        places = torch.cat([torch.arange(prompt), *(prompt + torch.arange(length) for length in answers)])
        sees &= places > places[prompt:, None] - window
    return sees[None, None].to(device)


AttentionInterface.register(BY_DOCUMENT, attend_by_document)
AttentionMaskInterface.register(BY_DOCUMENT, sdpa_mask)
