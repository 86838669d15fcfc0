"""`transformers.Trainer` with a preference objective as its loss, and the metrics of preference training."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from mfpo.errors import MfpoError, SettingError, brief
from mfpo.folders import writing
from mfpo.logprobs.pairs import Pair, check_fit
from mfpo.logprobs.prefix import shares_prefix
from mfpo.rank.semantic_entropy import end_ids
from mfpo.settings import options_of
from mfpo.train.arguments import training_arguments
from mfpo.train.batches import Order, Records, steps_per_epoch
from mfpo.train.data import open_data, open_pairs
from mfpo.train.inputs import Inputs
from mfpo.train.metrics import count_tokens, metrics, window_means
from mfpo.train.objectives import OBJECTIVES, LogRatios, total
from mfpo.train.policy import SHARDED_PRECISION, keep_backward_pass, lora_targets, make_trainable, unmoved
from mfpo.train.processes import gathered, share
from mfpo.train.reference import reference_logps
from mfpo.train.settings import TrainSettings

# Of the rewards that are shown for methods that have none.
_BETA = 0.1

# What rounding may move the log p of a token by, in nats, in float32 and below. Both are well above what other batches
# give, and well below a model that computes something else: logits of 16 to 32 are 0.125 apart in bfloat16.
_ROUNDING, _ROUNDING_BF16 = 0.01, 0.25


class PreferenceTrainer(Trainer):
    """Trains `model` by preference on `train_dataset`, a dataset as `mfpo.train` takes it.

    The settings choose the trainable weights and the loss; `args`, if given, the rest: learning rate,
    batches, epochs, seed, precision. All records are one stage: for stages from easy to hard use `mfpo.train`,
    whose stages pass `Records` and what they already have: `reference`, the log-probabilities of all records of the
    dataset, (records, sequences per record), and `frozen`, the reference model, if the method reads more of it.
    Without these the model before the first step is the reference; `starts_as_reference` says that it is with them
    too. `write` receives the metrics of each logging
    window and the step, in the first process only.

    Raises MfpoError when model, data and settings do not fit each other, before a step would spoil the weights, and
    when a checkpoint cannot be written.
    """

    def __init__(
        self,
        model: Any,
        settings: TrainSettings | None = None,
        args: TrainingArguments | None = None,
        *,
        processing_class: Any,
        train_dataset: datasets.Dataset | Records,
        reference: Tensor | None = None,
        frozen: Any = None,
        starts_as_reference: bool = False,
        write: Callable[[dict[str, float], int], None] | None = None,
        **kwargs: Any,
    ) -> None:
        settings = settings or TrainSettings()
        if not isinstance(train_dataset, Records):
            if settings.curriculum:
                raise SettingError("a PreferenceTrainer has one stage; use mfpo.train for curriculum=true")
            settings = replace(settings, curriculum=False).resolved()
            pairs = open_pairs(open_data(train_dataset, settings), processing_class, settings)
            train_dataset = Records(pairs, range(len(pairs)))
            if not isinstance(model, PeftModel):
                model = make_trainable(model, settings, targets=lora_targets(model, settings), adapter=None)
        self.settings, self.method = settings.resolved(), OBJECTIVES[settings.method]
        self.pairs, self.processor, self.reference, self.write = train_dataset.pairs, processing_class, reference, write
        args = args or training_arguments(self.settings, Path("trainer_output"), records=len(train_dataset))
        args._n_gpu = min(args.n_gpu, 1)  # else the Trainer would take batches for all GPUs that it sees
        config = dict(vars(model.config))
        super().__init__(model, args, train_dataset=train_dataset, data_collator=self.collate, **kwargs)
        # The Trainer notes in it that the model keeps no cache, which would be saved; our passes ask for none anyway.
        vars(model.config).clear()
        vars(model.config).update(config)
        if self.is_fsdp_enabled:
            self._shard_as_fits()
        # Says that the loss is divided by the records of the whole step, not of the batch, by ourselves.
        self.model_accepts_loss_kwargs = True
        self.shares_prefix = shares_prefix(model)
        self.end_ids = torch.tensor(end_ids(model, processing_class.tokenizer))
        self.prepared = self.method.prepare(model, self.pairs) if self.method.prepare else None
        if frozen is None and "reference" in self.method.inputs and not isinstance(model, PeftModel):
            frozen = copy.deepcopy(model).requires_grad_(False).eval()
        self.frozen, self.starts_as_reference = frozen, starts_as_reference
        self.unmoved = unmoved(model)
        keep_backward_pass(model)
        self.window: dict[str, Tensor] = {}
        self.window_start = time.monotonic()
        self.rows_of_step: list[int] = []
        self.rates: dict[str, float] = {}
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(QuietBar)

    def _shard_as_fits(self) -> None:
        """Set what accelerate would get wrong: layers that models name but only other forms of them have, rounding."""
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.transformer_cls_names_to_wrap is None:
            there = {type(module).__name__ for module in self.model.modules()}
            plugin.transformer_cls_names_to_wrap = sorted(there.intersection(self.model._no_split_modules or ()))
        if self.args.bf16:
            plugin.mixed_precision_policy = SHARDED_PRECISION

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, from a checkpoint if the model has been loaded from it.

        Raises MfpoError for a checkpoint without the reference, since a checkpoint's model is no longer it.
        """
        if self.reference is None:
            if resume_from_checkpoint:
                raise MfpoError(
                    "a PreferenceTrainer resumes only with the model loaded from the checkpoint and the `reference` of "
                    "the model before; `mfpo.train` resumes a killed run by itself"
                )
            self.reference, self.starts_as_reference = self._own_reference(), True
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _own_reference(self) -> Tensor:
        """The log-probabilities under the model as it is, (records, sequences per record)."""
        self.model.eval()
        batch_size = self.args.per_device_train_batch_size
        check_fit(self.model, self.pairs, "the model given", self._autocast(), batch_size=batch_size)
        rows = share(list(range(len(self.pairs))))
        logps = gathered(
            reference_logps(self.model, self.pairs, rows, batch_size=batch_size, autocast=self._autocast())
        )
        return torch.tensor([[logp for logp, _ in logps[row]] for row in range(len(self.pairs))])

    def _autocast(self) -> torch.autocast:
        """The precision of passes beside those of the training, as theirs."""
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=bool(self.args.bf16))

    def collate(self, records: Sequence[tuple[Pair, bool]]) -> dict[str, Any]:
        """One batch of `Pairs.collate`; `counts` says which records count, `prepared` is what the method adds."""
        pairs, counts = zip(*records, strict=True)
        batch: dict[str, Any] = self.pairs.collate(pairs, shared=self.shares_prefix)
        if self.prepared is not None:
            batch["prepared"] = self.prepared.collate(pairs)
        return batch | {"counts": torch.tensor(counts)}

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        records, processes, args = len(self.train_dataset), self.accelerator.num_processes, self.args
        batches = {"batch_size": args.per_device_train_batch_size, "processes": processes}
        batches["gradient_accumulation"] = args.gradient_accumulation_steps
        return Order(
            records,
            multiple=args.per_device_train_batch_size * processes if processes > 1 else 1,
            seed=args.seed,
            epoch=lambda: self.state.global_step // steps_per_epoch(records, **batches),
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
        when it is not finite, or not that of the reference in the first step.
        """
        for module in self.unmoved:  # The Trainer has put the whole model in training mode.
            module.training = getattr(module, "gradient_checkpointing", False)  # which works in training mode only
        rows, counts, prepared = inputs.pop("rows"), inputs.pop("counts"), inputs.pop("prepared", None)
        self.rows_of_step += rows.tolist()
        s, method = self.settings, self.method
        assert self.reference is not None, "train() computes it"
        known = Inputs(
            model,
            inputs,
            self.reference[rows.cpu()].to(rows.device),
            reads_logits=method.reads_logits,
            frozen=self.frozen,
            autocast=self._autocast(),
            end_ids=self.end_ids.to(rows.device),
        )
        brought = {name for name in method.inputs if hasattr(self.prepared, name)}
        arguments = {name: getattr(known, name) for name in method.inputs - brought}
        arguments |= {name: getattr(self.prepared, name)(model, prepared) for name in brought}
        parts = method.losses(**arguments, **options_of(s, method.losses))
        self._check_first_step(known.ratios, inputs["answer_mask"], rows)
        losses = total(parts, **s.weights())
        if not losses.isfinite().all():
            broken = [row for row, loss in zip(rows.tolist(), losses, strict=True) if not loss.isfinite()]
            raise self._not_finite("loss", broken)
        beta = getattr(s, "beta", _BETA)
        values = {"loss": losses.detach(), **metrics(known.logps.detach(), known.ratios, parts, beta=beta)}
        sums = {name: value[counts].double().sum() for name, value in values.items()}
        for name, amount in (sums | {"records": counts.sum()} | count_tokens(inputs)).items():
            self.window[name] = self.window.get(name, 0.0) + amount
        return losses[counts].sum() * self.accelerator.num_processes / num_items_in_batch

    def _check_first_step(self, ratios: LogRatios, answer_mask: Tensor, rows: Tensor) -> None:
        """Raises MfpoError when the rewards of the first step, whose model is the reference still, are not 0."""
        reads_reference = not {"ratios", "reference"}.isdisjoint(self.method.inputs)
        if self.state.global_step or not self.starts_as_reference or not reads_reference:
            return
        is_exact = not (self.args.bf16 or self.args.fp16) and all(
            weight.dtype == torch.float32 for weight in self.model.parameters()
        )
        off = torch.stack([values.detach() for values in vars(ratios).values() if values is not None], dim=1)
        # Rounding adds up over an answer as a random walk does.
        allowed = answer_mask.sum(-1).sqrt().view(off.shape) * (_ROUNDING if is_exact else _ROUNDING_BF16)
        if (off.abs() <= allowed).all():
            return
        row, sequence = divmod(int(off.abs().argmax()), off.shape[1])
        reward = getattr(self.settings, "beta", _BETA) * float(off[row, sequence])
        raise MfpoError(
            "policy and reference do not compute the same: before any weight has moved, record "
            f"{brief(self.pairs.ids[int(rows[row])])} has a reward of {reward:.2g}, which must be 0; a "
            f"{self.model.config.model_type!r} model that computes otherwise while it is trained cannot be trained here"
        )

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
            if self.write is not None and self.is_world_process_zero():
                self.write(means, self.state.global_step)
            logs = logs | means
        self.window_start = time.monotonic()
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, or the adapter, with its processor. A checkpoint, `_internal_call`, is without one."""
        if self.is_fsdp_enabled and not _internal_call:
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and not _internal_call:
            folder = Path(output_dir or self.args.output_dir)
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle
            # Not the Trainer's `processing_class`, whose tokens it would write into the model's configuration.
            self.processor.save_pretrained(folder)

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
