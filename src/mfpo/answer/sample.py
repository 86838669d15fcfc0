"""Sampled answers: several to a question, whose prompt and image are computed once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from mfpo.answer.greedy import PROMPT, finish_rows, keep_rows
from mfpo.answer.questions import Question
from mfpo.build.steps import generator
from mfpo.models import cache_argument, plain_generation
from mfpo.processors import encode_questions


class Sampled(NamedTuple):
    """An answer; one that is `cut` had not ended at the maximum number of tokens."""

    text: str
    cut: bool


class Draw:
    """Chooses each row's next token: a logits processor that leaves one token possible.

    `uniform`, (rows, tokens) of numbers in [0, 1), says which: the token at whose place the cumulated probability
    exceeds the number. A row's choice so depends on its own numbers alone. A row of NaN takes the likeliest token.
    """

    def __init__(self, uniform: Tensor, start: int, temperature: float, eos: Tensor) -> None:
        self._uniform, self._start, self._temperature, self._eos = uniform, start, temperature, eos

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self.tokens(scores, input_ids.shape[1] - self._start)
        # A row that ended with its first token is not known to `generate` as ended.
        has_ended = torch.isin(input_ids[:, self._start :], self._eos).any(dim=1)
        chosen = torch.where(has_ended, self._eos[0], chosen)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)

    def tokens(self, scores: Tensor, step: int) -> Tensor:
        """The tokens (rows,) that follow, by their scores (rows, vocabulary)."""
        uniform = self._uniform[:, step : step + 1]
        # In double precision, as a vocabulary of 100,000 is summed up.
        cumulated = (scores.float() / self._temperature).softmax(dim=1).double().cumsum(dim=1)
        drawn = torch.searchsorted(cumulated, uniform.nan_to_num() * cumulated[:, -1:], right=True)[:, 0]
        return torch.where(uniform[:, 0].isnan(), scores.argmax(dim=1), drawn.clamp(max=scores.shape[1] - 1))

    def keep(self, rows: Tensor) -> None:
        """Leave only `rows` of the batch."""
        self._uniform = self._uniform[rows]


@torch.inference_mode()
def sample(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    images: Sequence[Image],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> list[list[Sampled]]:
    """To each question the greedy answer, and `samples` answers drawn at `temperature`.

    Each answer's random numbers come from the seed, the question's id and the answer's number, so that neither order
    nor batch has a part in them.
    """
    texts = [question["text"] for question in questions]
    uniform = np.full((len(texts), samples + 1, max_new_tokens), np.nan)
    for row, question in zip(uniform, questions, strict=True):
        for number, rng in enumerate(generator(seed, question["question_id"]).spawn(samples), start=1):
            row[number] = rng.random(max_new_tokens)
    numbers = torch.from_numpy(uniform).flatten(0, 1).to(model.device)
    batch = dict(encode_questions(processor, texts, images).to(model.device, model.dtype))
    with plain_generation(model, processor.tokenizer):
        eos = torch.tensor(model.generation_config.eos_token_id, device=model.device).view(-1)
        draw = Draw(numbers, batch["input_ids"].shape[1], temperature, eos)
        if batch.keys() <= PROMPT:
            answers = _from_one_prompt(model, batch, samples + 1, draw, max_new_tokens)
        else:  # of what else there is in the batch, it is not known what belongs to which question
            every = [row for row in range(len(texts)) for _ in range(samples + 1)]
            encoded = encode_questions(processor, [texts[row] for row in every], [images[row] for row in every])
            batch = dict(encoded.to(model.device, model.dtype))
            output = model.generate(**batch, logits_processor=[draw], max_new_tokens=max_new_tokens)
            answers = list(output[:, batch["input_ids"].shape[1] :])
    decoded = processor.batch_decode(answers, skip_special_tokens=True)
    is_cut = [not torch.isin(answer, eos).any() for answer in answers]
    sampled = [Sampled(text.strip(), cut) for text, cut in zip(decoded, is_cut, strict=True)]
    return [sampled[start : start + samples + 1] for start in range(0, len(sampled), samples + 1)]


def _from_one_prompt(model: Any, batch: dict[str, Tensor], count: int, draw: Draw, max_new_tokens: int) -> list[Tensor]:
    """The new tokens of `count` answers to each row of the batch, whose prompts are computed once."""
    cache = DynamicCache(config=model.config)
    started = model.generate(
        **batch,
        **{cache_argument(model): cache},
        max_new_tokens=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    every = torch.arange(len(batch["input_ids"]), device=model.device).repeat_interleave(count)
    keep_rows(model, cache, every)
    first = draw.tokens(started.logits[0][every], 0)
    tokens = torch.cat([batch["input_ids"][every], first[:, None]], dim=1)
    mask = pad(batch["attention_mask"][every], (0, 1), value=1)
    return finish_rows(model, {"input_ids": tokens, "attention_mask": mask}, max_new_tokens, cache=cache, draw=draw)
