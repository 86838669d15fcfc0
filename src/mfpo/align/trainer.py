"""Training (paper, sections 3.2 and 3.3): one `transformers.Trainer` a stage, the policy going on from stage to stage.

A run folder holds `config.yaml`, `made_by.json`, `metrics.jsonl`, `reference.parquet`, `summary.json` and `model/`.
"""

import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from rich.console import Console
from torch import Tensor
from torch.utils.data import Subset
from transformers import TrainingArguments

from mfpo.align.curriculum import stages
from mfpo.align.objectives import OBJECTIVES
from mfpo.align.pairs import Pairs
from mfpo.align.policy import computes_in_bf16, lora_targets, make_trainable, weights_dtype
from mfpo.align.preference_trainer import PreferenceTrainer
from mfpo.align.reference import read_reference, reference_logps, write_reference
from mfpo.align.train_settings import TrainSettings
from mfpo.errors import MfpoError
from mfpo.folders import fingerprint, whole_folder, write_json
from mfpo.models import device, load_model, load_processor, quiet
from mfpo.records import TEXT_COLUMNS, column, read_dataset


@quiet()
def train(data: Path, model: Path, out: Path, settings: TrainSettings) -> None:
    """Train `model` on the records in `data` and write the run folder `out`.

    Started again after a kill, it goes on from the last checkpoint. Raises MfpoError before the first step when data,
    model and settings do not fit each other, and at a step whose loss is not finite.
    """
    settings = settings.resolved()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MfpoError("training in several processes is not there yet; start `mfpo train` without a launcher")
    if settings.lora_rank and (model / "adapter_config.json").exists():
        raise MfpoError(f"{model}: an adapter cannot be the base of another one; merge it first with `mfpo merge`")
    dataset = open_data(data, settings)
    processor = load_processor(model)
    made_by = {"command": "train", "data": str(data), "model": str(model), "settings": asdict(settings)}
    made_by |= {"data_files": fingerprint(data, "*.parquet"), "model_files": fingerprint(model, "*")}
    with whole_folder(out, made_by) as folder:
        (folder / "config.yaml").write_text(yaml.safe_dump(asdict(settings), sort_keys=False), encoding="utf-8")
        needs_images = OBJECTIVES[settings.method].needs_rejected_images
        pairs = Pairs(dataset, processor, rejected_images=needs_images, max_length=settings.max_length)
        levels = column(dataset, "level") if settings.curriculum else None
        plan = [("all", list(range(len(pairs))))] if levels is None else stages(levels)
        if not (folder / "model").exists():
            policy = run_stages(model, pairs, plan, settings, folder)
            policy.save_pretrained(folder / "model.partial")
            processor.save_pretrained(folder / "model.partial")
            (folder / "model.partial").rename(folder / "model")
        shutil.rmtree(folder / "stages", ignore_errors=True)


def open_data(data: Path, settings: TrainSettings) -> datasets.Dataset:
    """The dataset, with the columns that the method needs. Raises MfpoError when it is not made for the method."""
    method = OBJECTIVES[settings.method]
    needs = ["rejected_images"] * method.needs_rejected_images
    needs += ["corruption"] * (method.corruption is not None) + ["level"] * bool(settings.curriculum)
    dataset = read_dataset(data, needs=[*TEXT_COLUMNS, *needs])
    if method.corruption:
        kinds = {corruption["kind"] for corruption in column(dataset, "corruption")}
        if kinds != {method.corruption}:
            raise MfpoError(
                f"{data}: method {settings.method} needs rejected images of kind {method.corruption}, but these are "
                f"{', '.join(sorted(kinds))}; run `mfpo build` with `--corruption {method.corruption}`"
            )
    return dataset


def run_stages(
    model: Path, pairs: Pairs, plan: list[tuple[str, list[int]]], settings: TrainSettings, folder: Path
) -> Any:
    """Train on the stages of `plan` that `folder` does not hold yet, and return the policy."""
    ends = [folder / "stages" / f"{number}-{name}" for number, (name, _) in enumerate(plan)]
    finished = [end for end in ends if end.exists()]
    last = finished[-1] if finished else None
    base = load_model(last if last and not settings.lora_rank else model, dtype=weights_dtype(settings))
    targets = lora_targets(base, settings)
    reference = _reference(base, pairs, settings, folder)
    policy = make_trainable(base, settings, targets=targets, adapter=last)
    first_step = 0
    for end, (name, rows) in zip(ends, plan, strict=True):
        if end not in finished:
            Console(stderr=True).print(f"stage {name}: {len(rows)} records")
            log = StageLog(folder / "metrics.jsonl", name, first_step)
            _run_stage(policy, pairs, rows, reference, settings, end, log)
        first_step += _steps(len(rows), settings)
    return policy


def _reference(base: Any, pairs: Pairs, settings: TrainSettings, folder: Path) -> Tensor:
    """The reference log-probabilities: read where a killed run has left them, else computed and kept."""
    path = folder / "reference.parquet"
    if not path.exists():
        autocast = torch.autocast(device().type, torch.bfloat16, enabled=computes_in_bf16(settings))
        logps = reference_logps(base, pairs, batch_size=settings.batch_size, autocast=autocast)
        write_json(folder / "summary.json", {"records": len(pairs), "cut_answers": pairs.cut_answers})
        write_reference(path, pairs, logps)
    return read_reference(path, pairs)


def _steps(records: int, settings: TrainSettings) -> int:
    """How many steps of the optimizer a stage takes."""
    batches = math.ceil(records / settings.batch_size)
    return math.ceil(batches / settings.gradient_accumulation) * settings.epochs


@dataclass(frozen=True)
class StageLog:
    """Appends the metrics of one stage to `metrics.jsonl`, which counts steps over all stages."""

    path: Path
    stage: str
    first_step: int

    def write(self, metrics: dict[str, float], step: int) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, "step": self.first_step + step, **metrics}) + "\n")

    def forget_after(self, step: int) -> None:
        """Remove what a killed run wrote after its checkpoint at `step` of this stage."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= self.first_step + step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(self.path)


def _run_stage(
    policy: Any, pairs: Pairs, rows: list[int], reference: Tensor, settings: TrainSettings, end: Path, log: StageLog
) -> None:
    """Train one stage, from its last checkpoint if there is one, and save the policy as the folder `end`."""
    checkpoints = end.with_name(end.name + ".checkpoints")
    trainer = PreferenceTrainer(
        model=policy,
        args=_arguments(settings, checkpoints, steps=_steps(len(rows), settings)),
        train_dataset=Subset(pairs, rows),
        pairs=pairs,
        reference=reference,
        settings=settings,
        write=log.write,
    )
    trainer.args._n_gpu = min(trainer.args.n_gpu, 1)  # else the Trainer would split batches over all GPUs it sees
    checkpoint = _last_checkpoint(checkpoints)
    if checkpoint:
        Console(stderr=True).print(f"going on from step {checkpoint.name.split('-')[-1]} of the stage")
    log.forget_after(int(checkpoint.name.split("-")[-1]) if checkpoint else 0)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    partial = end.with_name(end.name + ".partial")
    policy.save_pretrained(partial)
    partial.rename(end)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: `trainer_state.json` comes last."""
    found = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
    return max(found, key=lambda path: int(path.name.split("-")[-1]), default=None)


def _arguments(settings: TrainSettings, checkpoints: Path, *, steps: int) -> TrainingArguments:
    # The Trainer rounds up, and its first warm-up step has rate 0: a stage of a few steps would not train at all.
    warmup = settings.warmup_ratio * steps
    return TrainingArguments(
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
        remove_unused_columns=False,
        label_names=[],
        disable_tqdm=False,
    )
