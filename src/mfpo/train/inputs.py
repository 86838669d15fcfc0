"""The inputs of the objectives, computed from a batch: log-ratios, the language-model loss, logits."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor

from mfpo.logprobs.sequences import answer_logits, token_logps, weighted_sum
from mfpo.train.objectives import Answer, Answers, LogRatios


class Inputs:
    """The arguments that an objective may request, each computed on request from `batch` of `Pairs.collate`.

    `names` are the cells of a record's sequences, `cells` those that the objective gets. `reference` (batch, sequences
    per record) are the reference's log-probabilities; `frozen` is the reference model, or
    None where it is an adapter's base; `autocast` is the precision that it computes in, as the policy does. `end_ids`
    (ids,) are the end tokens.
    """

    def __init__(
        self,
        model: Any,
        batch: dict[str, Tensor],
        reference: Tensor,
        *,
        names: Sequence[str],
        cells: Sequence[str],
        reads_logits: bool,
        frozen: Any = None,
        autocast: AbstractContextManager[Any] | None = None,
        end_ids: Tensor | None = None,
    ) -> None:
        self._model, self._batch, self._reference = model, batch, reference
        self._names, self._cells = names, cells
        self._reads_logits, self._frozen, self._autocast = reads_logits, frozen, autocast or nullcontext()
        self.end_ids = end_ids

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
    def all_ratios(self) -> LogRatios:
        """The log-ratio of every sequence."""
        return LogRatios(**dict(zip(self._names, self.logps - self._reference.T, strict=True)))

    @property
    def ratios(self) -> LogRatios:
        """The log-ratios of the objective's cells."""
        return LogRatios(**{name: getattr(self.all_ratios, name) for name in self._cells})

    @property
    def image_dependence(self) -> Tensor:
        """log p(y_w | m, t) - log p(y_w | m', t), without weights, (batch,)."""
        logps = self._token_logps.sum(-1).view(self._reference.shape)
        return logps[:, self._names.index("chosen")] - logps[:, self._names.index("rejected_image")]

    @property
    def chosen_nll(self) -> Tensor:
        """-log p of y_w, (batch,), scaled so that its mean over the batch is the mean over the batch's tokens."""
        number, sequences = self._names.index("chosen"), len(self._names)
        nll = -self._token_logps[number::sequences].sum(-1)
        tokens = self._batch["answer_mask"][number::sequences].sum()
        return nll * len(nll) / tokens

    @property
    def policy(self) -> Answers:
        """The answers of the objective's cells under the policy."""
        return self._by_record(self._answers)

    @property
    def reference(self) -> Answers:
        """The answers of the objective's cells under the reference, without a gradient."""
        with torch.no_grad(), self._autocast, _reference_model(self._model, self._frozen) as reference:
            logits = answer_logits(reference, self._batch)
        return self._by_record(replace(self._answers, logits=logits))

    def _by_record(self, answers: Answer) -> Answers:
        numbers = {name: self._names.index(name) for name in self._cells}
        parts = {
            name: [value[number :: len(self._names)] for value in vars(answers).values()]
            for name, number in numbers.items()
        }
        return Answers(**{name: Answer(*part) for name, part in parts.items()})


@contextmanager
def _reference_model(policy: Any, frozen: Any) -> Iterator[Any]:
    if frozen is not None:
        yield frozen
        return
    with extract_model_from_parallel(policy).disable_adapter():
        yield policy
