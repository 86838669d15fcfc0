"""log p(answer | prompt, images) of any vision-language model that transformers knows.

A conversation is rendered by the model's own chat template; the prompt with its images goes through the model's own
processor, and the answer's tokens are put behind. Policy, reference, entropy and probes all come through here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from mfpo.errors import MfpoError, RecordError
from mfpo.logprobs.conversation import render
from mfpo.logprobs.features import Layout, join, process
from mfpo.logprobs.prefix import LAYOUT, Score, on_device, shared_scores, shares_prefix
from mfpo.records import Message

# Logits over the vocabulary that exist at once: 128 MiB in float32.
_LOGITS = 1 << 25


@dataclass(frozen=True)
class Encoded:
    """A prompt with its images, and one or more answers to it: `prompt_ids` (length,), each of `answers` (tokens,).

    `features` holds what else the processor made of the prompt (pixel values, image sizes, ...), as the model takes it
    for one row; `cut` counts the tokens of each answer beyond the maximum length. `weights` are those of each answer's
    tokens in its sum, if there are any. `layouts` say how features of several rows are joined.
    """

    prompt_ids: Tensor
    answers: tuple[Tensor, ...]
    features: dict[str, Tensor]
    cut: tuple[int, ...]
    weights: tuple[Tensor, ...] = ()
    layouts: Mapping[str, Layout] = field(default_factory=dict)

    def only(self, which: Sequence[bool]) -> "Encoded":
        """The prompt with those of its answers for which `which` is true."""
        answers, cut = tuple(compress(self.answers, which)), tuple(compress(self.cut, which))
        return replace(self, answers=answers, cut=cut, weights=tuple(compress(self.weights, which)))

    def split(self) -> list["Encoded"]:
        """The prompt once for each answer."""
        numbers = range(len(self.answers))
        return [self.only([number == answer for number in numbers]) for answer in numbers]


def encode(
    processor: Any,
    images: Sequence[Image.Image],
    prompt: Sequence[Message],
    answers: Sequence[Sequence[Message]],
    *,
    max_length: int,
) -> Encoded:
    """Encode one prompt with its images and `answers`.

    Prompt and answer together have at most `max_length` tokens; only an answer's end is ever cut. Raises RecordError
    when that leaves no room for an answer, and as `render` and `process`.
    """
    prompt_text, answer_texts = render(processor, prompt, answers, images=len(images))
    prompt_ids, features, layouts = process(processor, prompt_text, answer_texts[0], images)
    room = max_length - len(prompt_ids)
    if room < 1:
        raise RecordError(
            f"the prompt with its images has {len(prompt_ids)} tokens, so max_length={max_length} leaves "
            "no room for an answer"
        )
    ids = [_answer_ids(processor.tokenizer, prompt_text, text) for text in answer_texts]
    answer_ids = tuple(torch.tensor(answer[:room]) for answer in ids)
    return Encoded(
        prompt_ids, answer_ids, features, cut=tuple(max(len(answer) - room, 0) for answer in ids), layouts=layouts
    )


def _answer_ids(tokenizer: Any, prompt_text: str, answer_text: str) -> list[int]:
    """The answer's tokens as they follow the prompt; tokenised alone where a token would straddle the boundary."""
    before = tokenizer(prompt_text, add_special_tokens=False)["input_ids"]
    both = tokenizer(prompt_text + answer_text, add_special_tokens=False)["input_ids"]
    if both[: len(before)] == before:
        return both[len(before) :]
    return tokenizer(answer_text, add_special_tokens=False)["input_ids"]


def collate(rows: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """One batch for `token_logps`: a row is [prompt | answer | answer ...], padded on the right.

    `input_ids`, `position_ids`, `documents` and `answer_numbers` are (rows, length). Each answer's positions go on
    from the prompt's; a document is a row's number, -1 in the padding; the prompt has answer number 0.
    `answer_ids`, `answer_mask`, `predictors` and, if there are any, `answer_weights` are (sequences, tokens), the
    sequences row by row; a predictor is the place, in the flattened rows, of the token that predicts an answer's token:
    the one before it or the prompt's last.
    Features of images are joined as the processor does for a batch.
    """
    batch = _layout(rows, pad_id)
    if rows[0].weights:
        batch["answer_weights"] = pad_sequence([weight for row in rows for weight in row.weights], batch_first=True)
    answer_tokens = [sum(map(len, row.answers)) for row in rows]
    layouts = {name: layout for row in rows for name, layout in row.layouts.items()}
    for name in {name: None for row in rows for name in row.features}:
        batch[name] = join(name, [row.features.get(name) for row in rows], layouts.get(name), answer_tokens)
    return batch


def _layout(rows: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """The part of a batch that is the same for all models."""
    length = max(len(row.prompt_ids) + sum(map(len, row.answers)) for row in rows)
    ids, positions, documents, numbers, predictors = [], [], [], [], []
    for number, row in enumerate(rows):
        prompt = len(row.prompt_ids)
        lengths = torch.tensor([prompt, *map(len, row.answers)])
        starts = lengths.cumsum(0)[:-1]
        ids.append(torch.cat([row.prompt_ids, *row.answers]))
        positions.append(torch.cat([torch.arange(prompt), *(prompt + torch.arange(len(a)) for a in row.answers)]))
        documents.append(torch.full((len(ids[-1]),), number))
        numbers.append(torch.arange(len(lengths)).repeat_interleave(lengths))
        for start, answer in zip(starts.tolist(), row.answers, strict=True):
            predictor = start - 1 + torch.arange(len(answer))
            predictor[0] = prompt - 1
            predictors.append(number * length + predictor)
    answers = [answer for row in rows for answer in row.answers]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "position_ids": pad_sequence(positions, batch_first=True),
        "documents": pad_sequence(documents, batch_first=True, padding_value=-1),
        "answer_numbers": pad_sequence(numbers, batch_first=True),
        "answer_ids": pad_sequence(answers, batch_first=True, padding_value=pad_id),
        "answer_mask": pad_sequence(
            [torch.ones_like(answer, dtype=torch.bool) for answer in answers], batch_first=True
        ),
        "predictors": pad_sequence(predictors, batch_first=True),
    }


def pad_id(processor: Any) -> int:
    """The token that fills up rows; what it is changes nothing, as it is masked."""
    tokenizer = processor.tokenizer
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def token_logps(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """log p of each answer token in float32, (sequences, tokens) as the batch's `answer_mask`; 0 outside the mask.

    A model that `shares_prefix` takes any batch, others one answer a row.
    """
    return by_token(answer_scores(model, batch, in_chunks(model, logps_of)), batch)


def sequence_logps(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """log p(y | t, m) of each sequence: the sum over the answer's tokens, end token included, (sequences,)."""
    return weighted_sum(token_logps(model, batch), batch)


def weighted_sum(logps: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The log p of each token, (sequences, tokens), summed by the batch's weights if it has any, (sequences,)."""
    return (logps * batch["answer_weights"].to(logps.device)).sum(-1) if "answer_weights" in batch else logps.sum(-1)


def answer_logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The logits that predict each answer token, (sequences, tokens, vocabulary) in float32; 0 outside the answers."""
    return by_token(answer_scores(model, batch, lambda project, states, ids: project(states).float()), batch)


def answer_scores(model: Any, batch: dict[str, Tensor], score: Score) -> Tensor:
    """`score` of all answer tokens, (tokens, ...), by one forward pass of the model."""
    return (shared_scores if shares_prefix(model) else plain_scores)(model, batch, score)


def plain_scores(model: Any, batch: dict[str, Tensor], score: Score) -> Tensor:
    """`answer_scores` with one answer a row, nothing but the model's own forward pass, whose states are the logits."""
    batch = on_device(model, batch)
    ids, answer_mask = batch["input_ids"], batch["answer_mask"]
    assert len(ids) == len(answer_mask), "the plain path takes one answer a row"
    places, length = batch["predictors"][answer_mask], ids.shape[1]
    rows, columns = places // length, places % length
    # The logits over the vocabulary are the largest tensor by far: only those from the first answer on are made.
    first = int(columns.min())
    inputs = {name: value for name, value in batch.items() if name not in LAYOUT}
    inputs |= {"input_ids": ids, "attention_mask": (batch["documents"] >= 0).long()}
    logits = model(**inputs, logits_to_keep=length - first, use_cache=False).logits
    # Some models take `logits_to_keep` and make them of all positions.
    if logits.shape[1] not in (length - first, length):
        name = type(extract_model_from_parallel(model)).__name__
        raise MfpoError(f"a {name} gives logits of {logits.shape[1]} positions for {length} tokens; use another model")
    return score(nn.Identity(), logits[rows, columns - length], batch["answer_ids"][answer_mask])


def logits_at_once(model: Any) -> int:
    """For how many tokens logits over the vocabulary exist at once."""
    return max(1, _LOGITS // extract_model_from_parallel(model).config.get_text_config().vocab_size)


def in_chunks(model: Any, function: Callable[[Tensor, Tensor], Tensor]) -> Score:
    """The score `function(logits, ids)`, whose logits in float32, (tokens, vocabulary), exist for a chunk at a time."""
    chunk = logits_at_once(model)

    def of_chunk(project: Callable[[Tensor], Tensor], states: Tensor, ids: Tensor) -> Tensor:
        return function(project(states).float(), ids)

    def score(project: Callable[[Tensor], Tensor], states: Tensor, ids: Tensor) -> Tensor:
        if len(ids) <= chunk:
            return of_chunk(project, states, ids)
        chunks = zip(states.split(chunk), ids.split(chunk), strict=True)
        # Recomputed in the backward pass, so that training keeps the logits of one chunk at a time.
        return torch.cat([checkpoint(of_chunk, project, *part, use_reentrant=False) for part in chunks])

    return score


def logps_of(logits: Tensor, ids: Tensor) -> Tensor:
    """log p of the tokens `ids`, (tokens,), from the logits that predict them, (tokens, vocabulary)."""
    return -F.cross_entropy(logits, ids, reduction="none")


def by_token(scores: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Scores of all answer tokens, (tokens, ...), as (sequences, tokens, ...); 0 outside the batch's `answer_mask`."""
    assert scores.dtype == torch.float32, "what wraps the model has rounded them on their way out"
    answer_mask = batch["answer_mask"].to(scores.device)
    spread = scores.new_zeros(*answer_mask.shape, *scores.shape[1:])
    spread[answer_mask] = scores
    return spread
