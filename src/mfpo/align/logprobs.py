"""log p(answer | prompt, images) of any vision-language model that transformers knows.

A conversation is rendered by the model's own chat template; the prompt with its images goes through the model's own
processor, and the answer's tokens are put behind. Policy, reference, entropy and probes all come through here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mfpo.errors import MfpoError, RecordError
from mfpo.records import Message

# What processors give per token, not per image: an answer's tokens are text, which is type 0 in both.
_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class Encoded:
    """A prompt with its images and one answer: `input_ids` (length,), the answer from `answer_start` on.

    `features` holds what else the processor made (pixel values, image sizes, ...), as the model takes it for one row;
    `cut` counts the answer's tokens beyond the maximum length.
    """

    input_ids: Tensor
    answer_start: int
    features: dict[str, Tensor]
    cut: int


def encode(
    processor: Any,
    images: Sequence[Image.Image],
    prompt: Sequence[Message],
    answers: Sequence[Sequence[Message]],
    *,
    max_length: int,
) -> list[Encoded]:
    """Encode one prompt with each of `answers`; the images are processed once and shared.

    Only an answer's end is ever cut. Raises RecordError when `max_length` leaves no room for an answer.
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
    rows = []
    for text in answer_texts:
        ids = _answer_ids(processor.tokenizer, prompt_text, text)
        kept = ids[:room]
        features = {
            name: F.pad(value[0], (0, len(kept))) if name in _TOKEN_TYPES else value for name, value in inputs.items()
        }
        input_ids = torch.cat([prompt_ids, torch.tensor(kept)])
        rows.append(Encoded(input_ids, len(prompt_ids), features, cut=len(ids) - len(kept)))
    return rows


def render(
    processor: Any, prompt: Sequence[Message], answers: Sequence[Sequence[Message]], *, images: int
) -> tuple[str, list[str]]:
    """The text of the prompt up to where the model begins to answer, and of each answer with its end token.

    The images stand at the head of the first user turn. The end token is added where the template gives none.
    Raises MfpoError when the processor has no chat template or the template rewrites the prompt behind an answer.
    """
    if processor.chat_template is None:
        raise MfpoError("the model's processor has no chat template; put its chat_template.jinja into the model folder")
    turns = _with_images(prompt, images)
    prompt_text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    end = processor.tokenizer.eos_token
    texts = []
    for answer in answers:
        whole = processor.apply_chat_template(turns + _with_images(answer, 0), tokenize=False)
        if not whole.startswith(prompt_text):
            raise MfpoError(
                "the model's chat template renders a prompt differently once it is answered "
                f"({whole[: len(prompt_text)]!r} is not {prompt_text!r}); use a template that only appends"
            )
        text, found, _ = whole[len(prompt_text) :].rpartition(end)
        texts.append((text if found else whole[len(prompt_text) :].rstrip()) + end)
    return prompt_text, texts


def _with_images(messages: Sequence[Message], images: int) -> list[dict[str, Any]]:
    """Messages with content parts, which every template of a vision-language model takes."""
    turns = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    if images:
        first_user = next((turn for turn in turns if turn["role"] == "user"), None)
        if first_user is None:
            raise RecordError("column 'prompt' has no user turn to show the image in")
        first_user["content"] = [{"type": "image"}] * images + list(first_user["content"])
    return turns


def _answer_ids(tokenizer: Any, prompt_text: str, answer_text: str) -> list[int]:
    """The answer's tokens as they follow the prompt; tokenised alone where a token would straddle the boundary."""
    before = tokenizer(prompt_text, add_special_tokens=False)["input_ids"]
    both = tokenizer(prompt_text + answer_text, add_special_tokens=False)["input_ids"]
    if both[: len(before)] == before:
        return both[len(before) :]
    return tokenizer(answer_text, add_special_tokens=False)["input_ids"]


def collate(rows: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """One batch, padded on the right: `input_ids`, `attention_mask`, `answer_mask`, each (rows, length), and features.

    Features of images are concatenated along their first dimension, as processors do for a batch.
    """
    lengths = torch.tensor([len(row.input_ids) for row in rows])
    starts = torch.tensor([row.answer_start for row in rows])
    position = torch.arange(int(lengths.max()))
    batch = {
        "input_ids": pad_sequence([row.input_ids for row in rows], batch_first=True, padding_value=pad_id),
        "attention_mask": (position < lengths[:, None]).long(),
        "answer_mask": (position >= starts[:, None]) & (position < lengths[:, None]),
    }
    for name in rows[0].features:
        values = [row.features[name] for row in rows]
        batch[name] = pad_sequence(values, batch_first=True) if name in _TOKEN_TYPES else _concatenate(values)
    return batch


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
    """log p of each answer token in float32, (rows, positions from the first answer on); 0 at all other positions."""
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    mask = inputs.pop("answer_mask")
    first = int(mask.int().argmax(dim=1).min())
    # The logits over the vocabulary are the largest tensor by far: only those that predict an answer are made.
    kept = mask.shape[1] - first + 1
    logits = model(**inputs, logits_to_keep=kept, use_cache=False).logits[:, :-1].float()
    targets = inputs["input_ids"][:, first:]
    logps = logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)
    return logps.masked_fill(~mask[:, first:], 0.0)


def sequence_logps(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """log p(y | t, m) of each row: the sum over the answer's tokens, end token included, (rows,)."""
    return token_logps(model, batch).sum(dim=-1)
