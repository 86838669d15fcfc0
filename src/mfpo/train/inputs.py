"""What the objectives' functions are given, made from a batch: log-ratios, logits, and the states of HACL."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import Tensor

from mfpo.logprobs.prefix import TOKEN_TYPES
from mfpo.logprobs.sequences import Encoded, answer_logits, answer_scores, collate, token_logps, weighted_sum
from mfpo.train.methods.hacl import Features
from mfpo.train.objectives import Answer, Answers, LogRatios

Batch = dict[str, Tensor]


class Inputs:
    """The arguments that an objective may ask for, each made when it is asked for, from `batch` of `Pairs.collate`.

    `reference` (batch, sequences per record) are the reference's log-probabilities; `frozen` is the reference model, or
    None where it is an adapter's base; `autocast` is the precision that it computes in, as the policy does. `alone` is
    what `collate_alone` made, `end_ids` (ids,) are the end tokens.
    """

    def __init__(
        self,
        model: Any,
        batch: Batch,
        reference: Tensor,
        *,
        reads_logits: bool,
        frozen: Any = None,
        autocast: AbstractContextManager[Any] | None = None,
        alone: Sequence[Batch] = (),
        end_ids: Tensor | None = None,
    ) -> None:
        self._model, self._batch, self._reference = model, batch, reference
        self._reads_logits, self._frozen, self._autocast = reads_logits, frozen, autocast or nullcontext()
        self._alone, self.end_ids = alone, end_ids

    @cached_property
    def _answers(self) -> Answer:
        """All sequences under the policy."""
        return Answer(answer_logits(self._model, self._batch), self._batch["answer_ids"], self._batch["answer_mask"])

    @cached_property
    def _token_logps(self) -> Tensor:
        return self._answers.logps() if self._reads_logits else token_logps(self._model, self._batch)

    @cached_property
    def logps(self) -> Tensor:
        """The policy's log p of each sequence, (sequences per record, batch)."""
        return weighted_sum(self._token_logps, self._batch).view(self._reference.shape).T

    @cached_property
    def ratios(self) -> LogRatios:
        """The log-ratios of the sequences."""
        return LogRatios(*(self.logps - self._reference.T))

    @property
    def chosen_nll(self) -> Tensor:
        """-log p of y_w, (batch,), scaled so that its mean over the batch is the mean over the batch's tokens."""
        sequences = self._reference.shape[1]
        nll, tokens = -self._token_logps[::sequences].sum(-1), self._batch["answer_mask"][::sequences].sum()
        return nll * len(nll) / tokens

    @property
    def policy(self) -> Answers:
        """The records' answers under the policy."""
        return self._by_record(self._answers)

    @property
    def reference(self) -> Answers:
        """The records' answers under the reference, without a gradient."""
        with torch.no_grad(), self._autocast, _reference_model(self._model, self._frozen) as reference:
            logits = answer_logits(reference, self._batch)
        return self._by_record(replace(self._answers, logits=logits))

    def _by_record(self, answers: Answer) -> Answers:
        sequences = self._reference.shape[1]
        parts = ([value[number::sequences] for value in vars(answers).values()] for number in range(sequences))
        return Answers(*(Answer(*part) for part in parts))

    @property
    def features(self) -> Features:
        """The policy's last states at the end of the images alone and of each answer alone, in float32."""
        images, texts = (answer_scores(self._model, batch, _states).float() for batch in self._alone)
        return Features(images, *texts.chunk(2))


@contextmanager
def _reference_model(policy: Any, frozen: Any) -> Iterator[Any]:
    if frozen is not None:
        yield frozen
        return
    with extract_model_from_parallel(policy).disable_adapter():
        yield policy


def _states(project: Any, states: Tensor, ids: Tensor) -> Tensor:
    return states


def collate_alone(prompts: Sequence[Encoded], *, image_id: int, end_id: int, pad_id: int) -> list[Batch]:
    """Two batches for `Inputs.features`, of the prompts' images without a text and of their answers without the rest.

    `prompts` hold y_w and y_l each; `image_id` is the placeholder of an image's tokens.
    """
    end = torch.tensor([end_id])
    images = [_images_alone(prompt, image_id, end) for prompt in prompts]
    texts = [Encoded(prompt.answers[number], (end,), {}, cut=(0,)) for number in (0, 1) for prompt in prompts]
    return [collate(rows, pad_id) for rows in (images, texts)]


def _images_alone(prompt: Encoded, image_id: int, end: Tensor) -> Encoded:
    """The images' tokens and an end token, whose state predicts the answer: another end token."""
    kept = prompt.prompt_ids == image_id
    features = {
        name: F.pad(value[:, kept], (0, len(end))) if name in TOKEN_TYPES else value
        for name, value in prompt.features.items()
    }
    return Encoded(torch.cat([prompt.prompt_ids[kept], end]), (end,), features, cut=(0,))
