"""One stage of a run: training on one level, from files to files.

A stage starts by loading the previous stage's output, so that a killed run resumes like any other.
"""

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from peft import PeftConfig
from torch import Tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from mfpo.folders import write_json, writing
from mfpo.logprobs.cells import CELLS
from mfpo.logprobs.pairs import Pairs, check_fit
from mfpo.models import device
from mfpo.settings import options_of
from mfpo.train.arguments import steps_of_stages, training_arguments
from mfpo.train.base import MODEL_IN_MEMORY
from mfpo.train.batches import Records, all_of
from mfpo.train.best import Best, KeepBest
from mfpo.train.card import hub_name, model_card
from mfpo.train.objectives import OBJECTIVES
from mfpo.train.plan import Plan, rerank
from mfpo.train.policy import computes_in_bf16, open_policy, precision, wanted_attention, weights_dtype
from mfpo.train.processes import gathered, processes, say, share
from mfpo.train.progress import StageLog, last_checkpoint
from mfpo.train.reference import (
    find_reference,
    read_reference,
    reference_key,
    reference_logps,
    sequence_hashes,
    write_reference,
)
from mfpo.train.settings import TrainSettings
from mfpo.train.trainer import PreferenceTrainer
from mfpo.train.vision_cache import keep_features


@dataclass(frozen=True)
class Run:
    """Everything that the stages of a run share.

    `model` is the folder of the model that is trained, `model_files` are its hashes; `pairs` are the records of
    `dataset` as the method reads them. `titles` are what the card calls model and data. `cache` is where `.reference`
    and `.vision` lie: the dataset's folder, or the run's for one in memory. `folder` will be renamed to `out`.
    `held_out` is the same run with the held-out pairs for its records.
    """

    model: Path
    model_files: list[str]
    titles: tuple[str, str]
    dataset: datasets.Dataset
    pairs: Pairs
    cache: Path
    out: Path
    folder: Path
    settings: TrainSettings
    processor: Any
    held_out: "Run | None" = None

    @property
    def best(self) -> Best | None:
        """Where the best model is kept, if it is."""
        name = self.settings.keep_best
        if name is None:
            return None
        is_more_better = self.settings.is_more_better()[name.removeprefix("eval/")]
        return Best(self.folder / "metrics.jsonl", name, is_more_better, self.folder / "stages")

    def end(self, number: int, name: str) -> Path:
        """Where the stage leaves the policy, as a whole model or adapter."""
        return self.folder / "stages" / f"{number}-{name}"

    def key(self, **depends_on: Any) -> str:
        """A name for what the untrained model computes in the run's precision."""
        settings = self.settings
        return reference_key(
            model=self.model_files,
            bf16=computes_in_bf16(settings),
            in_4bit=settings.quantize_4bit,
            weights=str(weights_dtype(settings)),
            device=device().type,
            **depends_on,
        )


def train_stage(run: Run, plan: Plan, number: int) -> Plan:
    """Train stage `number` from where the one before ended, unless it is done; return the plan.

    With `rerank`, the stages that are left are cut anew in it.
    """
    end = run.end(number, plan[number][0])
    before = run.end(number - 1, plan[number - 1][0]) if number else None
    checkpoint, step = last_checkpoint(_checkpoints(end))
    policy = None if end.exists() else _open(run, last=checkpoint or before)
    if run.settings.rerank and number:
        order = run.folder / "stages" / f"{number}.order.json"
        if not order.exists():
            _write_json(order, rerank(policy, run.pairs, plan[number:], run.settings))
        plan = plan[:number] + [(name, rows) for name, rows in json.loads(order.read_text(encoding="utf-8"))]
    if policy is None:
        return plan
    name, rows = plan[number]
    say(f"stage {number + 1} of {len(plan)}, {name}: {len(rows)} records")
    reference = make_reference(policy, run, rows, number)
    held_out = run.held_out
    steps = steps_of_stages(plan, run.settings)
    log = StageLog(run.folder / "metrics.jsonl", name, sum(steps[:number]))
    if checkpoint:
        say(f"resuming from step {step} of the stage")
    if processes().is_main_process:
        log.forget_after(step)
    reads_reference = "reference" in OBJECTIVES[run.settings.method].inputs
    frozen = _open(run, last=None).requires_grad_(False) if reads_reference and not run.settings.lora_rank else None
    trainer = PreferenceTrainer(
        policy,
        run.settings,
        training_arguments(run.settings, _checkpoints(end), records=len(rows), steps=steps[number]),
        processing_class=run.processor,
        train_dataset=Records(run.pairs, rows),
        eval_dataset=all_of(held_out.pairs) if held_out else None,
        reference=reference,
        eval_reference=_eval_reference(policy, held_out, number) if held_out else None,
        frozen=frozen,
        starts_as_reference=not number or run.settings.reset_reference,
        write=log.write,
    )
    if run.best:
        trainer.add_callback(KeepBest(run.best, log.first_step, partial(_save, trainer, run)))
    with trainer.interruption.by_signals():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    with writing(f"the end of stage {name}", run.folder):
        _save(trainer, run, end)
        _remove_checkpoints(run, end)
    unset_hf_deepspeed_config()  # else ZeRO-3 would split what is loaded from here on, in this process alone too
    return plan


def _open(run: Run, *, last: Path | None) -> Any:
    policy = open_policy(run.model, run.settings, last=last)
    if run.settings.vision_cache:
        keep_features(policy, run.cache / ".vision" / run.key())
    return policy


def _checkpoints(end: Path) -> Path:
    return end.with_name(end.name + ".checkpoints")


def _write_json(path: Path, value: Any) -> None:
    """By the first process; the others wait for it."""
    if processes().is_main_process:
        write_json(path, value)
    processes().wait_for_everyone()


def kept_reference(run: Run) -> tuple[Path, list[list[str]]]:
    """The file that keeps the untrained model's log-probabilities for other runs too, and their hashes in it."""
    s, weigh = run.settings, OBJECTIVES[run.settings.method].weigh
    options = options_of(s, weigh) if weigh else {}
    key = run.key(max_length=s.max_length, attention=wanted_attention(s), **options)
    # The key does not know the code of a user's own weights: what they come to is this run's alone.
    is_ours = weigh is None or weigh.__module__.startswith("mfpo.")
    file = (run.cache if is_ours else run.folder) / ".reference" / f"{key}.parquet"
    return file, sequence_hashes(run.dataset, run.pairs.names, paired=weigh is not None)


def make_reference(policy: Any, run: Run, rows: list[int], number: int) -> Tensor:
    """The reference of a stage: the policy before its first step, in all stages or, with `reset_reference`, in this.

    Read where a killed run has left it, else computed and kept. NaN in rows that are not of the stage's reference.
    """
    if run.settings.reset_reference and number:
        path = run.folder / "stages" / f"{number}.reference.parquet"
        if not path.exists():
            _write_reference(path, run.pairs, _compute_reference(policy, run, rows))
        return read_reference(path, run.pairs, rows)
    path = run.folder / "reference.parquet"
    if not path.exists():
        size = run.settings.per_device_train_batch_size
        name = MODEL_IN_MEMORY if run.model == run.folder / "base" else str(run.model)
        check_fit(policy, run.pairs, name, precision(run.settings), batch_size=size)
        logps = _find_reference(policy, run)
        original_cells = [number for number, name in enumerate(run.pairs.names) if CELLS[name].images == "images"]
        cut = sum(sequences[number][1] > 0 for sequences in logps.values() for number in original_cells)
        if cut:
            say(f"{cut} answers were cut at max_length={run.settings.max_length}")
        _write_json(run.folder / "summary.json", {"records": len(run.pairs), "cut_answers": cut})
        _write_reference(path, run.pairs, logps)
    return read_reference(path, run.pairs, range(len(run.pairs)))


def _eval_reference(policy: Any, held_out: Run, number: int) -> Tensor:
    """The reference of the held-out pairs, as `make_reference` of a stage's records."""
    rows = list(range(len(held_out.pairs)))
    is_reset = held_out.settings.reset_reference and number
    path = held_out.folder / (f"stages/{number}.eval_reference.parquet" if is_reset else "eval_reference.parquet")
    if not path.exists():
        logps = _compute_reference(policy, held_out, rows) if is_reset else _find_reference(policy, held_out)
        _write_reference(path, held_out.pairs, logps)
    return read_reference(path, held_out.pairs, rows)


def _compute_reference(policy: Any, run: Run, rows: list[int]) -> dict[int, list[tuple[float, int]]]:
    """What the policy computes for `rows`."""
    size = run.settings.per_device_train_batch_size
    logps = reference_logps(policy, run.pairs, share(rows), batch_size=size, autocast=precision(run.settings))
    return gathered(logps)


def _find_reference(policy: Any, run: Run) -> dict[int, list[tuple[float, int]]]:
    """The untrained model's log-probabilities, computed where earlier runs have not kept them."""
    s, pairs = run.settings, run.pairs
    file, hashes = kept_reference(run)
    size = s.per_device_train_batch_size
    return find_reference(policy, pairs, hashes, file, batch_size=size, autocast=precision(s))


def _write_reference(path: Path, pairs: Pairs, logps: dict[int, list[tuple[float, int]]]) -> None:
    if processes().is_main_process:
        path.parent.mkdir(exist_ok=True)
        write_reference(path, pairs, logps)
    processes().wait_for_everyone()


def _save(trainer: PreferenceTrainer, run: Run, end: Path) -> None:
    """Save the policy with its processor and card as the folder `end`, whole or not at all."""
    folder = end.with_name(end.name + ".partial")
    trainer.save_model(str(folder))
    if processes().is_main_process:
        if run.settings.lora_rank:
            _name_base(run, folder)
        base, data = run.titles
        metrics = run.folder / "metrics.jsonl"
        card = model_card(hub=hub_name(run.model), base=base, data=data, settings=run.settings, metrics=metrics)
        (folder / "README.md").write_text(card, encoding="utf-8")
        folder.rename(end)
    processes().wait_for_everyone()


def _remove_checkpoints(run: Run, end: Path) -> None:
    """Remove a stage's checkpoints, but not TensorBoard's curves beside them."""
    if processes().is_main_process:
        if (_checkpoints(end) / "runs").exists():
            (_checkpoints(end) / "runs").rename(run.folder / f"runs-{end.name}")
        shutil.rmtree(_checkpoints(end), ignore_errors=True)
    processes().wait_for_everyone()


def _name_base(run: Run, adapter: Path) -> None:
    """Let the adapter name a base from the hub as others find it, and one in memory by where the run will have it."""
    config = PeftConfig.from_pretrained(adapter)
    if hub := hub_name(run.model):
        config.base_model_name_or_path, config.revision = hub, run.model.name
    elif run.model.parent == run.folder:
        config.base_model_name_or_path = str((run.out / run.model.name).resolve())
    config.save_pretrained(adapter)
