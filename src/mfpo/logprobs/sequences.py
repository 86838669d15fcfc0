"""log p(answer | prompt, images) of any vision-language model that transformers knows.

A conversation is rendered by the model's own chat template; the prompt with its images goes through the model's own
processor, and the answer's tokens are put behind. Policy, reference, entropy and probes all come through here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from mfpo.errors import MfpoError, RecordError, brief
from mfpo.logprobs.prefix import LAYOUT, TOKEN_TYPES, Score, shared_scores, shares_prefix
from mfpo.models import check_places
from mfpo.records import IMAGE_PLACE, Message, content_parts, place_images

# Logits over the vocabulary that exist at once: 128 MiB in float32.
_LOGITS = 1 << 25


@dataclass(frozen=True)
class Encoded:
    """A prompt with its images, and one or more answers to it: `prompt_ids` (length,), each of `answers` (tokens,).

    `features` holds what else the processor made of the prompt (pixel values, image sizes, ...), as the model takes it
    for one row; `cut` counts the tokens of each answer beyond the maximum length. `weights` are those of each answer's
    tokens in its sum, if there are any.
    """

    prompt_ids: Tensor
    answers: tuple[Tensor, ...]
    features: dict[str, Tensor]
    cut: tuple[int, ...]
    weights: tuple[Tensor, ...] = ()

    def split(self) -> list["Encoded"]:
        """The prompt once for each answer."""
        return [
            Encoded(self.prompt_ids, (answer,), self.features, (cut,), self.weights[number : number + 1])
            for number, (answer, cut) in enumerate(zip(self.answers, self.cut, strict=True))
        ]


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
    when that leaves no room for an answer.
    """
    prompt_text, answer_texts = render(processor, prompt, answers, images=len(images))
    bos = processor.tokenizer.bos_token
    is_marked = bos is not None and prompt_text.startswith(bos)
    inputs = processor(text=[prompt_text], images=list(images), return_tensors="pt", add_special_tokens=not is_marked)
    prompt_ids = inputs.pop("input_ids")[0]
    inputs.pop("attention_mask", None)
    room = max_length - len(prompt_ids)
    if room < 1:
        raise RecordError(
            f"the prompt with its images has {len(prompt_ids)} tokens, so max_length={max_length} leaves no answer"
        )
    ids = [_answer_ids(processor.tokenizer, prompt_text, text) for text in answer_texts]
    kept = tuple(torch.tensor(answer[:room]) for answer in ids)
    return Encoded(prompt_ids, kept, dict(inputs), cut=tuple(max(len(answer) - room, 0) for answer in ids))


def render(
    processor: Any, prompt: Sequence[Message], answers: Sequence[Sequence[Message]], *, images: int
) -> tuple[str, list[str]]:
    """The text of the prompt up to where the model begins to answer, and of each answer with its end token.

    The images stand where the prompt has `<image>`, or at the head of the first user turn. The end token is added
    where the template gives none. Raises RecordError when there are places but not one for each image, and MfpoError
    when the processor has no chat template or the template rewrites the prompt behind an answer.
    """
    if processor.chat_template is None:
        raise MfpoError("the model's processor has no chat template; put its chat_template.jinja into the model folder")
    turns = _with_images(prompt, images)
    check_places(processor, turns)
    prompt_text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    end = processor.tokenizer.eos_token
    texts = []
    for answer in answers:
        whole = processor.apply_chat_template(turns + _as_text(answer), tokenize=False)
        if not whole.startswith(prompt_text):
            raise MfpoError(
                "the model's chat template renders a prompt differently once it is answered "
                f"({brief(prompt_text)} is not how {brief(whole)} begins); use a template that only appends"
            )
        text, found, _ = whole[len(prompt_text) :].rpartition(end)
        texts.append((text if found else whole[len(prompt_text) :].rstrip()) + end)
    return prompt_text, texts


def _with_images(messages: Sequence[Message], images: int) -> list[dict[str, Any]]:
    if any(IMAGE_PLACE in message["content"] for message in messages):
        messages = place_images(messages, images)
    if any(IMAGE_PLACE in message["content"] for message in messages):
        return [{"role": m["role"], "content": content_parts(m["content"])} for m in messages]
    turns = _as_text(messages)
    if images:
        first_user = next((turn for turn in turns if turn["role"] == "user"), None)
        if first_user is None:
            raise RecordError("column 'prompt' has no user turn to show the image in")
        first_user["content"] = [{"type": "image"}] * images + list(first_user["content"])
    return turns


def _as_text(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages with content parts, which every template of a vision-language model takes."""
    return [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in messages]


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
    Features of images are concatenated along their first dimension, as processors do for a batch.
    """
    batch = _layout(rows, pad_id)
    if rows[0].weights:
        batch["answer_weights"] = pad_sequence([weight for row in rows for weight in row.weights], batch_first=True)
    length = batch["input_ids"].shape[1]
    for name in rows[0].features:
        values = [row.features[name] for row in rows]
        if name in TOKEN_TYPES:
            batch[name] = torch.cat([F.pad(value, (0, length - value.shape[1])) for value in values])
        else:
            batch[name] = _concatenate(values)
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


def _concatenate(values: Sequence[Tensor]) -> Tensor:
    """Concatenate along dimension 0; the others are padded with zeros, as processors pad images of fewer tiles."""
    sizes = [max(size) for size in zip(*(value.shape[1:] for value in values), strict=True)]
    padded = []
    for value in values:
        missing = [size - has for size, has in zip(sizes, value.shape[1:], strict=True)]
        padded.append(F.pad(value, [n for m in reversed(missing) for n in (0, m)]) if any(missing) else value)
    return torch.cat(padded)


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
    batch = {name: value.to(model.device) for name, value in batch.items()}
    ids, answer_mask = batch["input_ids"], batch["answer_mask"]
    assert len(ids) == len(answer_mask), "the plain path takes one answer a row"
    places, length = batch["predictors"][answer_mask], ids.shape[1]
    rows, columns = places // length, places % length
    # The logits over the vocabulary are the largest tensor by far: only those from the first answer on are made.
    first = int(columns.min())
    inputs = {name: value for name, value in batch.items() if name not in LAYOUT}
    inputs |= {"input_ids": ids, "attention_mask": (batch["documents"] >= 0).long()}
    logits = model(**inputs, logits_to_keep=length - first, use_cache=False).logits
    return score(nn.Identity(), logits[rows, columns - first], batch["answer_ids"][answer_mask])


def in_chunks(model: Any, function: Callable[[Tensor, Tensor], Tensor]) -> Score:
    """The score `function(logits, ids)`, whose logits in float32, (tokens, vocabulary), exist for a chunk at a time."""
    chunk = max(1, _LOGITS // extract_model_from_parallel(model).config.get_text_config().vocab_size)

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
