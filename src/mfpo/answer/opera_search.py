"""OPERA's search: beams, the attention penalty of each candidate, and the rollback.

`opera.py` says where it comes from and where it differs.
"""

import copy
import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, pad
from transformers import DynamicCache

from mfpo.models import cache_argument

# The logit of what is no candidate.
_EXCLUDED = -999.0
# As many tokens of the answer are rewarded for attention on the image, and no rollback goes to one of them.
_FIRST = 10


def column_scores(attention: Tensor, *, scale: float) -> Tensor:
    """log c_j, where c_j = 1e-7 times the product of scale A_ij over the rows i >= j; (..., tokens).

    attention: A, (..., tokens, tokens), from each token of the answer to each; above the diagonal it is not read.
    """
    return (scale * attention).log().tril().sum(dim=-2) + math.log(1e-7)


def penalty(attention: Tensor, image_mass: Tensor, *, scale: float) -> Tensor:
    """The penalty on each candidate's logit, (...): max_j c_j; for the first ten tokens minus the image's attention.

    attention: as in `column_scores`, the candidate last. image_mass: the candidate's attention on the image, (...).
    """
    if attention.shape[-1] <= _FIRST:
        return -image_mass
    # e^80 is far beyond any logit, and finite: infinity times a weight of 0 would be no number.
    return column_scores(attention, scale=scale).amax(dim=-1).clamp(max=80).exp()


def find_rollback(places: Tensor, rollbacks: Mapping[int, int], *, threshold: int, most: int) -> int | None:
    """The token of the answer to choose again, or None.

    places: the place of the highest column score at each step so far, (steps, beams), one step a token.
    rollbacks: how often each token has been chosen again; `most` is the limit.
    """
    place = int(places[-1].mode().values)
    if place < _FIRST or not bool(((places == place).sum(dim=0) > threshold).all()):
        return None
    # A place found in the last two steps only (a threshold of 1): the token before the last is as far as one can go.
    token = min(place + 1, len(places) - 2)
    return next((number for number in (token, token - 1) if rollbacks.get(number, 0) < most), None)


class _Read(NamedTuple):
    """The model's outputs for the answers so far, row by row."""

    cache: DynamicCache
    logits: Tensor  # of the next token, (rows, vocabulary)
    attention: Tensor  # among the answer's tokens, (rows, tokens, tokens)
    image_mass: Tensor  # the last token's attention on the image, (rows,)

    def select(self, rows: Tensor) -> "_Read":
        return _Read(_fork(self.cache, rows), self.logits[rows], self.attention[rows], self.image_mass[rows])


class _Reader:
    """Reads answers to one question, prompt first. The model must attend eagerly: others keep no attention."""

    def __init__(self, model: Any, prompt: Mapping[str, Tensor]) -> None:
        self._model = model
        self._prompt_length = prompt["input_ids"].shape[1]
        shown = (prompt["input_ids"][0] == model.config.image_token_id).nonzero()
        # As the authors' code does: all from the first to the last, also what stands between the tiles of an image.
        self._image = slice(int(shown.min()), int(shown.max()) + 1)
        self._cache = cache_argument(model)
        cache = DynamicCache(config=model.config)
        logits = model(**prompt, **{self._cache: cache}, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        self.nothing = _Read(cache, logits, logits.new_zeros(1, 0, 0), logits.new_zeros(1))

    def read(self, before: _Read, rows: Tensor, tokens: Tensor) -> _Read:
        """Extend `rows` of `before` by `tokens`, (rows, tokens). `before` is not changed."""
        cache = _fork(before.cache, rows)
        output = self._model(
            input_ids=tokens, **{self._cache: cache}, use_cache=True, output_attentions=True, logits_to_keep=1
        )
        weights = output.attentions[-1].float().amax(dim=1)  # of the last layer, the highest of all heads
        weights = weights / weights.sum(dim=-1, keepdim=True)
        known = pad(before.attention[rows], (0, tokens.shape[1]))
        attention = torch.cat([known, weights[:, :, self._prompt_length :]], dim=1)
        return _Read(cache, output.logits[:, -1].float(), attention, weights[:, -1, self._image].sum(dim=-1))


def _fork(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A copy with the `rows` of a cache, which may come several times."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in fork.layers:  # linear attention keeps its states in dicts
        vars(layer).update({name: states.copy() for name, states in vars(layer).items() if isinstance(states, dict)})
    fork.reorder_cache(rows)  # makes new tensors
    return fork


class _Finished(NamedTuple):
    score: float  # the sum of its log-probabilities by its length
    answer: list[int]


class _Beams(NamedTuple):
    """A state of beam search, as transformers does it."""

    answers: Tensor  # so far, (beams, tokens)
    scores: Tensor  # their sums of log-probabilities, the highest first, (beams,)
    finished: list[_Finished]  # the best answers that have ended, the best first

    def choose(self, logits: Tensor, *, eos: Collection[int], last: bool) -> "tuple[Tensor, _Beams]":
        """The next choices, as beam * vocabulary + token, and the resulting beams; with `last`, every answer ends.

        An answer that ends counts only if it is among the best `beams` continuations.
        """
        beams, vocabulary = logits.shape
        best = (log_softmax(logits, dim=-1) + self.scores[:, None]).view(-1).topk(max(2, 1 + len(eos)) * beams)
        rows, tokens = best.indices // vocabulary, best.indices % vocabulary
        answers = torch.cat([self.answers[rows], tokens[:, None]], dim=1)
        ends = [last or token in eos for token in tokens.tolist()]
        finished = [
            _Finished(float(best.values[rank]) / answers.shape[1], answers[rank].tolist())
            for rank in range(beams)
            if ends[rank]
        ]
        finished = sorted(self.finished + finished, key=lambda each: -each.score)[:beams]
        going_on = [rank for rank, end in enumerate(ends) if not end][:beams]
        return best.indices[going_on], _Beams(answers[going_on], best.values[going_on], finished)

    def can_improve(self) -> bool:
        """Whether to go on: the guess is that the best beam will have no better mean than now."""
        is_full = len(self.finished) == len(self.scores)
        return not is_full or float(self.scores[0]) / self.answers.shape[1] > self.finished[-1].score


class _Retrospection:
    """The search's history, needed for rollbacks."""

    def __init__(self, *, threshold: int, most: int) -> None:
        self._threshold, self._most = threshold, most
        self._history: list[tuple[_Beams, Tensor]] = []  # for each token, the beams before it and what they chose
        self._places: list[Tensor] = []
        self._rollbacks: Counter[int] = Counter()
        self._rejected: dict[int, Tensor] = {}

    def keep(self, beams: _Beams, chosen: Tensor) -> None:
        self._history.append((beams, chosen))

    def look(self, scores: Tensor) -> int | None:
        """Note the column scores of all candidates, (beams, candidates, tokens); the token to go back to, if any."""
        self._places.append(scores.argmax(dim=-1).cpu().mode(dim=-1).values)
        places = torch.stack(self._places)
        return find_rollback(places, self._rollbacks, threshold=self._threshold, most=self._most)

    def go_back(self, token: int) -> tuple[_Beams, Tensor]:
        """The beams before `token`, and all that they may not choose again, as beam * vocabulary + token."""
        beams, chosen = self._history[token]
        del self._history[token:], self._places[token + 1 :]
        self._rollbacks[token] += 1
        # The authors' code forgets what was rejected at the next token, and at no later one.
        self._rejected.pop(token + 1, None)
        self._rejected[token] = torch.cat([self._rejected.get(token, chosen[:0]), chosen])
        return beams, self._rejected[token]


def search(
    model: Any,
    prompt: Mapping[str, Tensor],
    *,
    eos: Collection[int],
    max_new_tokens: int,
    num_beams: int,
    num_attn_candidates: int,
    scale_factor: float,
    threshold: int,
    penalty_weight: float,
) -> list[int]:
    """The best answer to one question, with the `eos` token if it ends with one. The model must attend eagerly."""
    reader, past = _Reader(model, prompt), _Retrospection(threshold=threshold, most=num_attn_candidates)
    every = torch.arange(num_beams, device=reader.nothing.logits.device)
    first = torch.zeros_like(every)
    read = reader.nothing.select(first)
    # All beams are the same at first, so only one of them may go on.
    beams = _Beams(every.new_zeros(len(every), 0), torch.where(every == 0, 0.0, -1e9), [])
    while beams.answers.shape[1] < max_new_tokens and beams.can_improve():
        values, candidates = read.logits.topk(num_attn_candidates)
        tried = reader.read(read, every.repeat_interleave(candidates.shape[1]), candidates.view(-1, 1))
        attention, image_mass = (each.unflatten(0, candidates.shape) for each in (tried.attention, tried.image_mass))
        token = past.look(column_scores(attention, scale=scale_factor))
        if token is None:
            values = values - penalty_weight * penalty(attention, image_mass, scale=scale_factor)
            logits = torch.full_like(read.logits, _EXCLUDED).scatter(1, candidates, values)
        else:
            beams, rejected = past.go_back(token)
            read = reader.read(reader.nothing, first, beams.answers)
            # As unlikely as the beam's unlikeliest token.
            lowest = read.logits.amin(dim=1, keepdim=True).expand_as(read.logits)
            is_rejected = torch.zeros_like(lowest, dtype=torch.bool).view(-1).index_fill(0, rejected, True)
            logits = torch.where(is_rejected.view_as(lowest), lowest, read.logits)
        last = beams.answers.shape[1] + 1 == max_new_tokens
        before = beams
        chosen, beams = before.choose(logits, eos=eos, last=last)
        past.keep(before, chosen)
        if not last:
            rows, tokens = chosen // logits.shape[1], beams.answers[:, -1:]
            same = candidates[rows] == tokens
            if token is None and bool(same.any(dim=1).all()):
                read = tried.select(rows * candidates.shape[1] + same.int().argmax(dim=1))
            else:
                read = reader.read(read, rows, tokens)
    return beams.finished[0].answer
