"""Training settings as transformers' TrainingArguments."""

import dataclasses
import math
from pathlib import Path

import torch
import transformers
from transformers import Trainer, TrainingArguments, get_scheduler

from mfpo.errors import MfpoError, SettingError, first_line
from mfpo.models import device
from mfpo.train.plan import Plan
from mfpo.train.policy import computes_in_bf16
from mfpo.train.processes import processes
from mfpo.train.settings import TrainSettings


def training_arguments(
    settings: TrainSettings, folder: Path, *, records: int, steps: int | None = None
) -> TrainingArguments:
    """The arguments of a training on `records` records by all processes together, with checkpoints in `folder`.

    `steps` is the stage's share of `max_steps`, where there are several stages.
    """
    steps = steps or settings.max_steps or steps_of(records, settings, processes().num_processes)
    # The Trainer rounds up, and its first warm-up step has rate 0: a stage of a few steps would not train at all.
    warmup = settings.warmup_steps * (steps if settings.warmup_steps < 1 else 1)
    fields = {
        "output_dir": str(folder),
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "per_device_eval_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": math.ceil(warmup) if warmup >= 1 else 0,
        "num_train_epochs": settings.num_train_epochs,
        "max_steps": steps if settings.max_steps else -1,
        "seed": settings.seed,
        "bf16": computes_in_bf16(settings),
        "use_cpu": device().type == "cpu",
        "gradient_checkpointing": settings.gradient_checkpointing or None,  # even False is deprecated from 5.24
        "logging_steps": settings.logging_steps,
        "save_steps": settings.save_steps,
        "save_total_limit": settings.save_total_limit,
        "eval_strategy": "steps" if settings.eval else "no",
        "eval_steps": settings.eval_steps,
        "report_to": settings.report_to,
        # Only the layers behind the features that a language model takes can be left out of a loss.
        "ddp_find_unused_parameters": settings.train_vision_tower or settings.lora_targets is not None,
        "remove_unused_columns": False,
        "label_names": [],
        "disable_tqdm": False,
    }
    arguments = TrainingArguments(**fields | settings.passed_on())
    # The settings decide, not accelerate's file.
    arguments.mixed_precision = "bf16" if arguments.bf16 else "no"
    return arguments


def check_arguments(settings: TrainSettings) -> None:
    """Raises SettingError when transformers refuses what is passed on, or a package is missing for it."""
    passed_on = settings.passed_on()
    missing = passed_on.keys() - {field.name for field in dataclasses.fields(TrainingArguments)}
    if missing:
        names = ", ".join(sorted(missing))
        raise SettingError(f"transformers {transformers.__version__} has no {names} yet; leave it out")
    try:
        arguments = training_arguments(settings, Path("unused"), records=1)
        if settings.optim:
            Trainer.get_optimizer_cls_and_kwargs(arguments)
        _check_schedule(arguments)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        passed_on |= {"lr_scheduler_type": settings.lr_scheduler_type}
        values = " ".join(f"{name}={value}" for name, value in passed_on.items())
        raise SettingError(f"transformers refuses one of {values}: {first_line(error)}") from error


def _check_schedule(arguments: TrainingArguments) -> None:
    """Raises ValueError or TypeError when the schedule of the rate lacks an argument, or does not know one."""
    optimizer = torch.optim.SGD([torch.zeros(1)])
    options = arguments.lr_scheduler_kwargs or {}
    steps = {"num_warmup_steps": 0, "num_training_steps": 1}
    get_scheduler(arguments.lr_scheduler_type, optimizer, **steps, scheduler_specific_kwargs=options)


def steps_of(records: int, settings: TrainSettings, processes: int) -> int:
    """How many steps of the optimizer `num_train_epochs` passes over `records` records take."""
    per_step = settings.per_device_train_batch_size * processes * settings.gradient_accumulation_steps
    return math.ceil(settings.num_train_epochs * math.ceil(records / per_step))


def steps_of_stages(plan: Plan, settings: TrainSettings) -> list[int]:
    """The steps of each stage. `max_steps` is shared out by the stages' records, and so is a total over all stages.

    Raises MfpoError when a stage would have none.
    """
    records = [len(rows) for _, rows in plan]
    if settings.max_steps is None:
        return [steps_of(count, settings, processes().num_processes) for count in records]
    ends = [round(settings.max_steps * sum(records[: number + 1]) / sum(records)) for number in range(len(plan))]
    steps = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if 0 in steps:
        raise MfpoError(
            f"max_steps is {settings.max_steps}, but each of the {len(plan)} stages needs at least one; raise it"
        )
    return steps
