"""One stage of a run, from what is on disk to what it leaves there.

A stage begins by loading what the stage before has saved, so that a run that was killed goes on as any other.
"""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from mfpo.errors import MfpoError, brief, first_line
from mfpo.folders import write_json, writing
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.sequences import collate, sequence_logps, token_logps
from mfpo.models import device
from mfpo.rank.entropy import token_entropy
from mfpo.rank.levels import cut_levels, stages
from mfpo.rank.semantic_entropy import end_ids
from mfpo.train.card import model_card
from mfpo.train.objectives import OBJECTIVES
from mfpo.train.policy import computes_in_bf16, open_policy, precision
from mfpo.train.processes import gathered, processes, say, share
from mfpo.train.reference import find_reference, read_reference, reference_logps, write_reference
from mfpo.train.settings import TrainSettings
from mfpo.train.stage import StageLog, StageRecords, last_checkpoint, steps_per_epoch
from mfpo.train.trainer import PreferenceTrainer
from mfpo.train.vision_cache import keep_features

# The stages of a run: each one's name and the rows of its records.
Plan = list[tuple[str, list[int]]]


@dataclass(frozen=True)
class Run:
    """What all stages of a run share; `hashes` are those of the records' sequences.

    `key` is that of the reference, `tower_key` that of the vision tower's features.
    """

    model: Path
    data: Path
    folder: Path
    settings: TrainSettings
    processor: Any
    pairs: Pairs
    hashes: list[list[str]]
    key: str
    tower_key: str

    def end(self, number: int, name: str) -> Path:
        """Where the stage leaves the policy, as a whole model or adapter."""
        return self.folder / "stages" / f"{number}-{name}"


def run_stage(run: Run, plan: Plan, number: int) -> Plan:
    """Train stage `number` from where the one before ended, unless it is done; return the plan.

    With `rerank`, the stages that are left are cut anew in it.
    """
    end = run.end(number, plan[number][0])
    last = run.end(number - 1, plan[number - 1][0]) if number else None
    order = run.folder / "stages" / f"{number}.order.json"
    checkpoint, step = last_checkpoint(_checkpoints(end))
    policy = None if end.exists() else _open(run, last=checkpoint or last)
    if run.settings.rerank and number:
        if not order.exists():
            _write_json(order, rerank(policy, run, plan[number:]))
        plan = plan[:number] + [(name, rows) for name, rows in json.loads(order.read_text(encoding="utf-8"))]
    if policy is not None:
        name, rows = plan[number]
        say(f"stage {number + 1} of {len(plan)}, {name}: {len(rows)} records")
        reference = _reference(policy, run, rows, number)
        first_step = sum(_steps(len(rows), run.settings) for _, rows in plan[:number])
        log = StageLog(run.folder / "metrics.jsonl", name, first_step)
        if checkpoint:
            say(f"going on from step {step} of the stage")
        if processes().is_main_process:
            log.forget_after(step)
        _train(policy, run, rows, reference, end, log, checkpoint)
    return plan


def _open(run: Run, *, last: Path | None) -> Any:
    policy = open_policy(run.model, run.settings, last=last)
    if run.settings.vision_cache:
        keep_features(policy, run.data / ".vision" / run.tower_key)
    return policy


def _write_json(path: Path, value: Any) -> None:
    """By the first process; the others wait for it."""
    if processes().is_main_process:
        path.parent.mkdir(exist_ok=True)
        write_json(path, value)
    processes().wait_for_everyone()


def rerank(policy: Any, run: Run, left: Plan) -> Plan:
    """The stages that are left with their records cut anew, by the entropies that `policy` gives them."""
    rows = sorted(row for _, rows in left for row in rows)
    found: dict[int, float] = {}
    own = share(rows)
    for start in range(0, len(own), run.settings.batch_size):
        batch = own[start : start + run.settings.batch_size]
        encoded = [run.pairs[row].prompts[0].split()[0] for row in batch]
        with torch.inference_mode(), precision(run.settings):
            values = token_entropy(token_logps(policy, collate(encoded, run.pairs.pad_id)))
        found |= dict(zip(batch, values.tolist(), strict=True))
    entropies = gathered(found)
    levels = cut_levels([entropies[row] for row in rows], [run.pairs.ids[row] for row in rows], len(left))
    parts = [[rows[place] for place in places] for _, places in stages(levels)]
    return [(name, part) for (name, _), part in zip(left, parts, strict=True)]


def _reference(policy: Any, run: Run, rows: list[int], number: int) -> Tensor:
    """The reference of a stage: the policy before its first step, in all stages or, with `reset_reference`, in this.

    Read where a killed run has left it, else computed and kept.
    """
    s, pairs = run.settings, run.pairs
    if s.reset_reference and number:
        path = run.folder / "stages" / f"{number}.reference.parquet"
        if not path.exists():
            own = reference_logps(policy, pairs, share(rows), batch_size=s.batch_size, autocast=precision(s))
            _write_reference(path, pairs, gathered(own))
        return read_reference(path, pairs, rows)
    path = run.folder / "reference.parquet"
    if not path.exists():
        check_fit(policy, run)
        kept = run.data / ".reference" / f"{run.key}.parquet"
        found = find_reference(policy, pairs, run.hashes, kept, batch_size=s.batch_size, autocast=precision(s))
        cut = sum(tokens > 0 for sequences in found.values() for _, tokens in sequences[:2])
        if cut:
            say(f"{cut} answers were cut at max_length={s.max_length}")
        _write_json(run.folder / "summary.json", {"records": len(pairs), "cut_answers": cut})
        _write_reference(path, pairs, found)
    return read_reference(path, pairs, range(len(pairs)))


def _write_reference(path: Path, pairs: Pairs, found: dict[int, list[tuple[float, int]]]) -> None:
    if processes().is_main_process:
        path.parent.mkdir(exist_ok=True)
        write_reference(path, pairs, found)
    processes().wait_for_everyone()


def check_fit(policy: Any, run: Run) -> None:
    """Raises MfpoError when the model cannot read what the processor makes of the first record."""
    batch = run.pairs.collate([run.pairs[0]])
    batch.pop("rows")
    known = policy.get_input_embeddings().num_embeddings
    fault = f"it knows {known} tokens" if int(batch["input_ids"].max()) >= known else None
    try:
        if fault is None:
            with torch.inference_mode(), precision(run.settings):
                sequence_logps(policy, batch)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:  # as to where they part
        fault = first_line(error)
    if fault:
        raise MfpoError(
            f"{run.model}: the model cannot read what the processor beside it makes of record "
            f"{brief(run.pairs.ids[0])} ({fault}); put the model's own processor there"
        )


def _steps(records: int, settings: TrainSettings) -> int:
    return steps_per_epoch(records, settings, processes().num_processes) * settings.epochs


def _checkpoints(end: Path) -> Path:
    return end.with_name(end.name + ".checkpoints")


def _train(
    policy: Any, run: Run, rows: list[int], reference: Tensor, end: Path, log: StageLog, checkpoint: Path | None
) -> None:
    """Train one stage, from `checkpoint` if there is one, and save the policy as the folder `end`."""
    reads_reference = "reference" in OBJECTIVES[run.settings.method].inputs
    trainer = PreferenceTrainer(
        model=policy,
        frozen=load_reference(run) if reads_reference and not run.settings.lora_rank else None,
        end_ids=torch.tensor(end_ids(policy, run.processor.tokenizer)),
        args=_arguments(run.settings, _checkpoints(end), steps=_steps(len(rows), run.settings)),
        records=StageRecords(run.pairs, rows),
        reference=reference,
        settings=run.settings,
        write=log.write,
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    with writing(f"the end of stage {log.stage}", run.folder):
        _save(trainer, run, end, log.path)


def load_reference(run: Run) -> Any:
    """The first model as it was, for a method that needs more of it than its log-probabilities."""
    return _open(run, last=None).requires_grad_(False).eval()


def _save(trainer: PreferenceTrainer, run: Run, end: Path, metrics: Path) -> None:
    """Save the policy with its processor and card as the folder `end`, whole or not at all."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    partial = end.with_name(end.name + ".partial")
    trainer.save_model(str(partial))
    if processes().is_main_process:
        (partial / "training_args.bin").unlink()  # a pickle
        run.processor.save_pretrained(partial)
        card = model_card(model=run.model, data=run.data, settings=run.settings, metrics=metrics)
        (partial / "README.md").write_text(card, encoding="utf-8")
        partial.rename(end)
        if (_checkpoints(end) / "runs").exists():  # TensorBoard's
            (_checkpoints(end) / "runs").rename(run.folder / f"runs-{end.name}")
        shutil.rmtree(_checkpoints(end), ignore_errors=True)
    processes().wait_for_everyone()


def _arguments(settings: TrainSettings, checkpoints: Path, *, steps: int) -> TrainingArguments:
    # The Trainer rounds up, and its first warm-up step has rate 0: a stage of a few steps would not train at all.
    warmup = settings.warmup_ratio * steps
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(warmup) if warmup >= 1 else 0,
        num_train_epochs=settings.epochs,
        seed=settings.seed,
        bf16=computes_in_bf16(settings),
        use_cpu=device().type == "cpu",
        gradient_checkpointing=settings.gradient_checkpointing or None,  # even False is a deprecated name from 5.24
        logging_steps=settings.logging_steps,
        save_steps=settings.save_steps,
        save_total_limit=1,
        report_to=settings.report_to,
        # Only the layers behind the features that a language model takes can be left out of a loss.
        ddp_find_unused_parameters=settings.train_vision_tower or settings.lora_targets is not None,
        remove_unused_columns=False,
        label_names=[],
        disable_tqdm=False,
    )
    # Else the Trainer would take batches for all GPUs that it sees; and the settings decide, not accelerate's file.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    arguments.mixed_precision = "bf16" if arguments.bf16 else "no"
    return arguments
