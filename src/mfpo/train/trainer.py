"""`transformers.Trainer` with a preference objective in place of its loss, and the metrics of preference training."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, Trainer

from mfpo.errors import MfpoError
from mfpo.folders import writing
from mfpo.logprobs.pairs import Pair
from mfpo.logprobs.prefix import shares_prefix
from mfpo.train.inputs import Inputs, collate_alone
from mfpo.train.objectives import OBJECTIVES, LogRatios, Losses, total
from mfpo.train.policy import SHARDED_PRECISION, precision
from mfpo.train.settings import TrainSettings
from mfpo.train.stage import StageOrder, StageRecords, steps_per_epoch

# Below it, the mean margin of a window is rounding, and a ratio to it means nothing.
_ROUNDING = 1e-5

# Of the rewards that are shown for methods that have none.
_BETA = 0.1


class PreferenceTrainer(Trainer):
    """Trains on the records of a stage; `reference` is (records of the dataset, sequences per record).

    `frozen` is the reference model for methods that read it, None where it is an adapter's base; `end_ids` (ids,) are
    the end tokens of the answers.
    `write` gets the metrics of each logging window and the step in the stage, in the first process only. Raises
    MfpoError before a step would spoil the weights, and when a checkpoint cannot be written.
    """

    def __init__(
        self,
        *,
        records: StageRecords,
        reference: Tensor,
        settings: TrainSettings,
        write: Callable[[dict[str, float], int], None],
        end_ids: Tensor,
        model: Any,
        frozen: Any = None,
        **kwargs: Any,
    ) -> None:
        config = dict(vars(model.config))
        super().__init__(model, train_dataset=records, data_collator=self.collate, **kwargs)
        # The Trainer notes in it that the model keeps no cache, which would be saved; our passes ask for none anyway.
        vars(model.config).clear()
        vars(model.config).update(config)
        if self.is_fsdp_enabled and self.args.bf16:
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = SHARDED_PRECISION
        # Says that the loss is divided by the records of the whole step, not of the batch, by ourselves.
        self.model_accepts_loss_kwargs = True
        self.pairs = records.pairs
        self.shares_prefix = shares_prefix(model)
        self.image_id: Any = getattr(model.config, "image_token_id", None)
        self.reference = reference
        self.settings = settings
        self.method = OBJECTIVES[settings.method]
        self.frozen = frozen
        self.end_ids = end_ids
        if "features" in self.method.inputs and not (self.shares_prefix and self.image_id is not None):
            raise MfpoError(
                f"method {settings.method} reads states that a {model.config.model_type!r} model does not show here; "
                "train one whose prompts can be shared, such as LLaVA or Qwen2.5-VL"
            )
        self.write = write
        self.window: dict[str, Tensor] = {}
        self.window_start = time.monotonic()
        self.rows_of_step: list[int] = []
        self.rates: dict[str, float] = {}
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(QuietBar)

    def collate(self, records: Sequence[tuple[Pair, bool]]) -> dict[str, Any]:
        """One batch of `Pairs.collate`; `counts` says which of its records count, `alone` is for `Inputs.features`."""
        pairs, counts = zip(*records, strict=True)
        batch: dict[str, Any] = self.pairs.collate(pairs, shared=self.shares_prefix)
        if "features" in self.method.inputs:
            prompts = [pair.prompts[0] for pair in pairs]
            batch["alone"] = collate_alone(
                prompts, image_id=self.image_id, end_id=self.pairs.end_id, pad_id=self.pairs.pad_id
            )
        return batch | {"counts": torch.tensor(counts)}

    def _get_train_sampler(self, train_dataset: Any = None) -> StageOrder:
        records, processes, s = len(self.train_dataset), self.accelerator.num_processes, self.settings
        return StageOrder(
            records,
            multiple=s.batch_size * processes if processes > 1 else 1,
            seed=s.seed,
            epoch=lambda: self.state.global_step // steps_per_epoch(records, s, processes),
        )

    def get_batch_samples(self, *args: Any) -> tuple[list[dict[str, Any]], Tensor]:
        """The batches of a step of the optimizer, and how many records count in them, in all processes together."""
        batches, _ = super().get_batch_samples(*args)
        records = sum(batch["counts"].sum() for batch in batches)
        return batches, self.accelerator.reduce(torch.as_tensor(records, device=self.args.device), "sum")

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The part of a batch in the mean loss over the `num_items_in_batch` records of the step.

        It is that of all processes together once their gradients are averaged. Raises MfpoError with the records' ids
        when it is not finite.
        """
        rows, counts, alone = inputs.pop("rows"), inputs.pop("counts"), inputs.pop("alone", [])
        self.rows_of_step += rows.tolist()
        s, method = self.settings, self.method
        given = Inputs(
            model,
            inputs,
            self.reference[rows.cpu()].to(rows.device),
            reads_logits=method.reads_logits,
            frozen=self.frozen,
            autocast=precision(s),
            alone=alone,
            end_ids=self.end_ids.to(rows.device),
        )
        parts = method.losses(**{name: getattr(given, name) for name in method.inputs}, **s.options_of(method.losses))
        losses = total(parts, text=s.text_weight, image=s.image_weight, margin=s.margin_weight)
        if not losses.isfinite().all():
            broken = [row for row, loss in zip(rows.tolist(), losses, strict=True) if not loss.isfinite()]
            raise self._not_finite("loss", broken)
        values = {"loss": losses.detach(), **metrics(given.logps.detach(), given.ratios, parts, beta=s.beta or _BETA)}
        sums = {name: value[counts].double().sum() for name, value in values.items()}
        for name, amount in (sums | {"records": counts.sum()} | count_tokens(inputs)).items():
            self.window[name] = self.window.get(name, 0.0) + amount
        return losses[counts].sum() * self.accelerator.num_processes / num_items_in_batch

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(norm):
            raise self._not_finite("gradient", self.rows_of_step)
        self.rows_of_step.clear()
        self.rates = {"learning_rate": self._get_learning_rate()}
        if norm is not None:
            self.rates["grad_norm"] = float(norm)
        return norm

    def _not_finite(self, what: str, rows: Sequence[int]) -> MfpoError:
        ids = ", ".join(repr(self.pairs.ids[row]) for row in rows)
        return MfpoError(
            f"the {what} is no longer finite at record {ids}, step {self.state.global_step}; lower learning_rate or "
            "look at these records, with another --out, as the last checkpoint before is kept in "
            f"{self.args.output_dir}"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means over the records since the last call; the Trainer calls it every `logging_steps`."""
        if self.window:
            summed = self.accelerator.reduce(torch.stack([value.double() for value in self.window.values()]), "sum")
            sums = dict(zip(self.window, summed.tolist(), strict=True))
            # The Trainer has no rates for a window that the end of the stage cuts short.
            means = window_means(sums, seconds=time.monotonic() - self.window_start) | self.rates
            self.window.clear()
            if self.is_world_process_zero():
                self.write(means, self.state.global_step)
            logs = logs | means
        self.window_start = time.monotonic()
        super().log(logs, start_time)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # The policy comes loaded from the checkpoint. The Trainer would look for names as saved among names in memory,
        # which differ for most of these models, and pass over what it does not find (huggingface/transformers#43701).
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with writing(f"the checkpoint of step {self.state.global_step}", Path(self.args.output_dir)):
            super()._save_checkpoint(model, trial)


class QuietBar(ProgressCallback):
    """The Trainer's progress bar, without the metrics that it prints between."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


def metrics(logps: Tensor, ratios: LogRatios, losses: Losses, *, beta: float) -> dict[str, Tensor]:
    """What is worth watching, by TRL's names, each (batch,), detached.

    `logps` is (sequences per record, batch). A method without m' has no image metrics.
    """
    chosen = beta * ratios.chosen.detach()
    rejected = beta * ratios.rejected.detach()
    values = {f"loss/{name}": loss.detach() for name, loss in losses.items()} | {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).float(),
        "logps/chosen": logps[0],
        "logps/rejected": logps[1],
    }
    if ratios.rejected_image is not None:
        image_rejected = beta * ratios.rejected_image.detach()
        values |= {
            "rewards/image_rejected": image_rejected,
            "rewards/image_margins": chosen - image_rejected,
            "rewards/image_accuracies": (chosen > image_rejected).float(),
            "logps/image_rejected": logps[2],
        }
    return values


def count_tokens(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """How many tokens of a batch of `logprobs.collate` go through the model, and with a row for each answer would."""
    is_token, numbers = batch["documents"] >= 0, batch["answer_numbers"]
    prompts = ((numbers == 0) & is_token).sum(dim=1)
    repeated = prompts * (numbers.amax(dim=1) - 1)
    return {"tokens": is_token.sum(), "tokens_unshared": is_token.sum() + repeated.sum()}


def window_means(sums: dict[str, float], *, seconds: float) -> dict[str, float]:
    """The metrics of a logging window from their sums over its records.

    `rewards/balance` is the image margin over the text margin, 1 where both modalities pull alike; there is none while
    the text margin is rounding.
    """
    sums = dict(sums)
    records, tokens, unshared = (sums.pop(name) for name in ("records", "tokens", "tokens_unshared"))
    means = {name: value / records for name, value in sums.items()}
    if "rewards/image_margins" in means and abs(means["rewards/margins"]) > _ROUNDING:
        means["rewards/balance"] = means["rewards/image_margins"] / means["rewards/margins"]
    return means | {"tokens/per_second": tokens / seconds, "tokens/saved": 1 - tokens / unshared}
