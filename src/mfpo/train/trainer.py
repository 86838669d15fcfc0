"""`transformers.Trainer` with a preference objective as its loss, and the metrics of preference training."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from mfpo.errors import MfpoError, SettingError, brief
from mfpo.folders import writing
from mfpo.logprobs.pairs import Pair, Pairs, check_fit
from mfpo.logprobs.prefix import shares_prefix
from mfpo.models import end_ids
from mfpo.settings import options_of
from mfpo.train.arguments import training_arguments
from mfpo.train.batches import Order, Records, all_of
from mfpo.train.data import open_data, open_pairs
from mfpo.train.inputs import Inputs
from mfpo.train.interruption import Interruption
from mfpo.train.metrics import count_tokens, metrics, record_means, window_means
from mfpo.train.objectives import OBJECTIVES, LogRatios, total
from mfpo.train.policy import SHARDED_PRECISION, keep_backward_pass, lora_targets, make_trainable, unmoved
from mfpo.train.processes import gathered, share
from mfpo.train.progress import last_checkpoint
from mfpo.train.reference import reference_logps
from mfpo.train.settings import TrainSettings

# Of the rewards that are shown for methods that have none.
_BETA = 0.1

# What rounding may move the log p of a token by, in nats, in float32 and below. Both are well above what other batches
# give, and well below a model that computes something else: logits of 16 to 32 are 0.125 apart in bfloat16.
_ROUNDING, _ROUNDING_BF16 = 0.01, 0.25

# Names the rates of the last step in a checkpoint's window of metrics.
_RATES = "rate:"


class PreferenceTrainer(Trainer):
    """Trains `model` by preference on `train_dataset`, a dataset as `mfpo.train` takes it.

    The settings choose the trainable weights and the loss; `args`, if given, the rest: learning rate,
    batches, epochs, seed, precision. All records are one stage: for stages from easy to hard use `mfpo.train`,
    whose stages pass `Records` and what they already have: `reference`, the log-probabilities of all records of the
    dataset, (records, sequences per record), and `frozen`, the reference model, if the method reads more of it.
    Without these the model before the first step is the reference; `starts_as_reference` says that it is with them
    too. `eval_dataset` are held-out pairs, with rejected images for any method, and `eval_reference` is their
    reference. `write` receives the metrics of each logging window, and of each evaluation under `eval/...`, and the
    step, in the first process only.

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
        eval_dataset: datasets.Dataset | Records | None = None,
        reference: Tensor | None = None,
        eval_reference: Tensor | None = None,
        frozen: Any = None,
        starts_as_reference: bool = False,
        write: Callable[[dict[str, float], int], None] | None = None,
        **kwargs: Any,
    ) -> None:
        settings = settings or TrainSettings()
        if not isinstance(train_dataset, Records):
            settings = _one_stage(settings)
            train_dataset, eval_dataset = _open(train_dataset, eval_dataset, processing_class, settings)
            if not isinstance(model, PeftModel):
                model = make_trainable(model, settings, targets=lora_targets(model, settings), adapter=None)
        self.settings, self.method = settings.resolved(), OBJECTIVES[settings.method]
        self.pairs, self.processor, self.reference, self.write = train_dataset.pairs, processing_class, reference, write
        self.eval_pairs, self.eval_reference = getattr(eval_dataset, "pairs", None), eval_reference
        args = args or training_arguments(self.settings, Path("trainer_output"), records=len(train_dataset))
        args._n_gpu = min(args.n_gpu, 1)  # else the Trainer would take batches for all GPUs that it sees
        config = dict(vars(model.config))
        kwargs |= {"train_dataset": train_dataset, "eval_dataset": eval_dataset, "data_collator": self.collate}
        super().__init__(model, args, **kwargs)
        # The Trainer notes in it that the model keeps no cache, which would be saved; our passes ask for none anyway.
        vars(model.config).clear()
        vars(model.config).update(config)
        if self.is_fsdp_enabled:
            self._shard_as_fits()
        # Says that the loss is divided by the records of the whole step, not of the batch, by ourselves.
        self.model_accepts_loss_kwargs = True
        self.shares_prefix = shares_prefix(model)
        self.end_ids = torch.tensor(end_ids(model, processing_class.tokenizer))
        prepare = self.method.prepare or (lambda model, pairs: None)
        self.prepared, self.eval_prepared = (pairs and prepare(model, pairs) for pairs in (self.pairs, self.eval_pairs))
        if frozen is None and "reference" in self.method.inputs and not isinstance(model, PeftModel):
            frozen = copy.deepcopy(model).requires_grad_(False).eval()
        self.frozen, self.starts_as_reference = frozen, starts_as_reference
        self.unmoved, self.interruption, self.window_start = unmoved(model), Interruption(), time.monotonic()
        keep_backward_pass(model)
        self.window: dict[str, Tensor] = {}
        self.rows_of_step: list[int] = []
        self.rates: dict[str, float] = {}
        self._change_callbacks()

    def _change_callbacks(self) -> None:
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if not self.args.disable_tqdm:
            self.add_callback(QuietBar)
        self.add_callback(self.interruption)

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
                    "the original model; `mfpo.train` resumes a killed run by itself"
                )
            self.reference, self.starts_as_reference = self._own_reference(self.pairs), True
        if self.eval_pairs is not None and self.eval_reference is None:
            self.eval_reference = self._own_reference(self.eval_pairs)
        if isinstance(resume_from_checkpoint, str):
            self._load_window(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _own_reference(self, pairs: Pairs) -> Tensor:
        """The log-probabilities under the model as it is, (records, sequences per record)."""
        self.model.eval()
        batch_size = self.args.per_device_train_batch_size
        check_fit(self.model, pairs, "the given model", self._autocast(), batch_size=batch_size)
        rows = share(list(range(len(pairs))))
        logps = gathered(reference_logps(self.model, pairs, rows, batch_size=batch_size, autocast=self._autocast()))
        return torch.tensor([[logp for logp, _ in logps[row]] for row in range(len(pairs))])

    def _autocast(self) -> torch.autocast:
        """The precision of passes beside those of the training, as theirs."""
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=bool(self.args.bf16))

    def collate(self, records: Sequence[tuple[Pair, bool]]) -> dict[str, Any]:
        """One batch of `Pairs.collate`; `counts` says which records count, `prepared` is what the method adds."""
        return self._collate(records, self.pairs, self.prepared)

    def _collate(self, records: Sequence[tuple[Pair, bool]], of: Pairs, prepared: Any) -> dict[str, Any]:
        # What fills a batch up must not be in a mean over the batch, as some methods take.
        pairs, counts = zip(*([record for record in records if record[1]] or records[:1]), strict=True)
        batch: dict[str, Any] = of.collate(pairs, shared=self.shares_prefix)
        if prepared is not None:
            batch["prepared"] = prepared.collate(pairs)
        return batch | {"counts": torch.tensor(counts)}

    def _eval_batches(self) -> Iterator[dict[str, Any]]:
        """This process's batches of held-out pairs: as many for each, as the passes of sharded models go together."""
        records, size = self.eval_dataset, self.args.per_device_eval_batch_size
        step = size * self.accelerator.num_processes
        end = len(records) if step == size else math.ceil(len(records) / step) * step
        for start in range(self.accelerator.process_index * size, end, step):
            batch = [records[place] for place in range(start, min(start + size, end))]
            yield self._collate(batch, records.pairs, self.eval_prepared)

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        records, processes, args = len(self.train_dataset), self.accelerator.num_processes, self.args
        batch = args.per_device_train_batch_size * processes
        steps = math.ceil(records / (batch * args.gradient_accumulation_steps))
        return Order(
            records,
            multiple=batch if processes > 1 else 1,
            seed=args.seed,
            epoch=lambda: self.state.global_step // steps,
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
        assert self.reference is not None, "train() computes it"
        rows, counts = inputs.pop("rows"), inputs.pop("counts")
        self.rows_of_step += rows.tolist()
        names = self.pairs.names
        known, losses, values = self._measure(model, inputs, self.reference[rows.cpu()], self.prepared, names)
        self._check_first_step(known.all_ratios, inputs["answer_mask"], rows)
        if not losses.isfinite().all():
            broken = [row for row, loss in zip(rows.tolist(), losses, strict=True) if not loss.isfinite()]
            raise self._not_finite("loss", broken)
        _add(self.window, values, counts)
        for name, amount in count_tokens(inputs).items():
            self.window[name] = self.window.get(name, 0.0) + amount
        return losses[counts].sum() * self.accelerator.num_processes / num_items_in_batch

    def _measure(
        self, model: Any, inputs: dict[str, Any], reference: Tensor, prepared: Any, names: Sequence[str]
    ) -> tuple[Inputs, Tensor, dict[str, Tensor]]:
        """What is known of a batch, its loss (batch,), and its metrics, each (batch,).

        `reference` (batch, sequences per record) are the reference's log-probabilities of the cells `names`, `prepared`
        brings what the method adds.
        """
        added = inputs.pop("prepared", None)
        settings, method, device = self.settings, self.method, inputs["input_ids"].device
        known = Inputs(
            model,
            inputs,
            reference.to(device),
            names=names,
            cells=method.cells,
            reads_logits=method.reads_logits,
            frozen=self.frozen,
            autocast=self._autocast(),
            end_ids=self.end_ids.to(device),
        )
        brought = {name for name in method.inputs if hasattr(prepared, name)}
        arguments = {name: getattr(known, name) for name in method.inputs - brought}
        arguments |= {name: getattr(prepared, name)(model, added) for name in brought}
        parts = method.losses(**arguments, **options_of(settings, method.losses))
        losses = total(parts, **settings.weights())
        beta = getattr(settings, "beta", _BETA)
        logps = dict(zip(names, known.logps.detach(), strict=True))
        shown = metrics(logps, known.all_ratios, parts, beta=beta)
        return known, losses, {"loss": losses.detach(), **shown}

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the held-out pairs: the metrics of training and `image_dependence`, log p(y_w | m) - log p(y_w | m').

        `write` and callbacks get them; random states and the window of the training's own metrics stay as they are.
        Raises MfpoError for other pairs than those that the trainer was made with.
        """
        if eval_dataset is not None or self.eval_pairs is None:
            raise MfpoError(
                "evaluate() measures the held-out pairs that the trainer was made with; make it with eval_dataset"
            )
        if self.is_in_train and 0 < self.state.global_step == self._initial_global_step:
            return {}  # by `eval_on_start`, but the run goes on from a checkpoint
        start = time.monotonic()
        if self.eval_reference is None:  # not trained yet
            self.eval_reference = self._own_reference(self.eval_pairs)
        means = self._eval_means(self.eval_reference)
        if self.write is not None and self.is_world_process_zero():
            self.write({f"eval/{name}": value for name, value in means.items()}, self.state.global_step)
        logs = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        super().log(logs)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        self.window_start += time.monotonic() - start
        return logs

    @torch.no_grad()
    def _eval_means(self, reference: Tensor) -> dict[str, float]:
        assert self.eval_pairs is not None
        names = self.eval_pairs.names
        model, device = self.model_wrapped.eval(), self.args.device
        sums: dict[str, Tensor] = {}
        with torch.random.fork_rng([device] if device.type == "cuda" else []), self.compute_loss_context_manager():
            for batch in self._eval_batches():
                inputs = self._prepare_inputs(batch)
                rows, counts = inputs.pop("rows"), inputs.pop("counts")
                known, _, values = self._measure(model, inputs, reference[rows.cpu()], self.eval_prepared, names)
                _add(sums, values | {"image_dependence": known.image_dependence}, counts)
        return record_means(self._over_processes(sums))

    def _over_processes(self, sums: dict[str, Tensor]) -> dict[str, float]:
        summed = self.accelerator.reduce(torch.stack([value.double() for value in sums.values()]), "sum")
        return dict(zip(sums, summed.tolist(), strict=True))

    def _check_first_step(self, ratios: LogRatios, answer_mask: Tensor, rows: Tensor) -> None:
        """Raises MfpoError when the rewards of the first step, whose model is the reference still, are not 0."""
        reads_reference = not {"ratios", "reference"}.isdisjoint(self.method.inputs)
        if self.state.global_step or not self.starts_as_reference or not reads_reference:
            return
        is_exact = not (self.args.bf16 or self.args.fp16) and all(
            weight.dtype == torch.float32 for weight in self.model.parameters()
        )
        off = torch.stack([getattr(ratios, name).detach() for name in self.pairs.names], dim=1)
        # Rounding adds up over an answer as a random walk does.
        allowed = answer_mask.sum(-1).sqrt().view(off.shape) * (_ROUNDING if is_exact else _ROUNDING_BF16)
        if (off.abs() <= allowed).all():
            return
        row, sequence = divmod(int(off.abs().argmax()), off.shape[1])
        reward = getattr(self.settings, "beta", _BETA) * float(off[row, sequence])
        raise MfpoError(
            "policy and reference give different log-probabilities before the first step (record "
            f"{brief(self.pairs.ids[int(rows[row])])}: reward {reward:.2g}, must be 0); a "
            f"{self.model.config.model_type!r} model that computes differently in training cannot be trained here"
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
        checkpoint, _ = last_checkpoint(Path(self.args.output_dir))
        kept = f"; the last checkpoint before is {checkpoint}" if checkpoint else ""
        return MfpoError(
            f"the {what} is no longer finite at record {ids}, step {self.state.global_step + 1} of the stage; lower "
            f"learning_rate or check these records, and give another --out{kept}"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means over the records since the last call; the Trainer calls it every `logging_steps`."""
        is_cut = self.interruption.is_asked and "train_runtime" in logs  # the window is in the checkpoint
        if self.window and not is_cut:
            sums = self._over_processes(self.window)
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
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled and not _internal_call else None
        if plugin:
            kind = plugin.state_dict_type
            plugin.set_state_dict_type("FULL_STATE_DICT")
        super().save_model(output_dir, _internal_call)
        if plugin:
            plugin.set_state_dict_type(kind)
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

    def _save_rng_state(self, output_dir: str) -> None:
        """With it, this process's part of the window of metrics that the checkpoint falls into."""
        super()._save_rng_state(output_dir)
        rates = {f"{_RATES}{name}": torch.tensor(value, dtype=torch.float64) for name, value in self.rates.items()}
        # Numbered, as safetensors has an order of its own, and the line of metrics is to have theirs.
        sums = {f"{number:04}{name}": value.cpu() for number, (name, value) in enumerate(self.window.items())}
        save_file(sums | rates, self._window_file(output_dir))

    def _load_window(self, checkpoint: Path) -> None:
        """Go on with the window of metrics that the checkpoint fell into."""
        if not self._window_file(checkpoint).exists():  # as with `save_only_model` in arguments of one's own
            return
        saved = load_file(self._window_file(checkpoint))
        self.rates = {name.removeprefix(_RATES): saved.pop(name).item() for name in [*saved] if name.startswith(_RATES)}
        self.window = {name[4:]: saved[name].to(self.args.device) for name in sorted(saved)}

    def _window_file(self, checkpoint: Path | str) -> Path:
        return Path(checkpoint) / f"window_{self.accelerator.process_index}.safetensors"


def _one_stage(settings: TrainSettings) -> TrainSettings:
    """The settings without stages. Raises SettingError when they ask for them."""
    if settings.curriculum:
        raise SettingError("a PreferenceTrainer has one stage; use mfpo.train for curriculum=true")
    return replace(settings, curriculum=False).resolved()


def _open(data: Any, eval_data: Any, processor: Any, settings: TrainSettings) -> tuple[Records, Records | None]:
    """All records to train on, and the held-out ones, of the setting `eval` where none are given."""
    records = all_of(open_pairs(open_data(data, settings), processor, settings))
    if eval_data is None and settings.eval:
        eval_data = Path(settings.eval)
    if eval_data is None:
        return records, None
    held_out = open_data(eval_data, settings, is_eval=True)
    return records, all_of(open_pairs(held_out, processor, settings, is_eval=True))


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor], counts: Tensor) -> None:
    """Add the `values`, each (batch,), of the records that count, and the number of these as `records`."""
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value[counts].double().sum()
    sums["records"] = sums.get("records", 0.0) + counts.sum()


class QuietBar(ProgressCallback):
    """The Trainer's progress bar, without the metrics that it prints between."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass
