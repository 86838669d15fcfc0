"""Training settings as transformers' TrainingArguments."""

import math
from pathlib import Path

from transformers import TrainingArguments

from mfpo.models import device
from mfpo.train.batches import steps_per_epoch
from mfpo.train.policy import computes_in_bf16
from mfpo.train.processes import processes
from mfpo.train.settings import TrainSettings


def training_arguments(settings: TrainSettings, folder: Path, *, records: int) -> TrainingArguments:
    """The arguments of a training on `records` records by all processes together, with checkpoints in `folder`."""
    # The Trainer rounds up, and its first warm-up step has rate 0: a stage of a few steps would not train at all.
    warmup = settings.warmup_ratio * steps_of(records, settings, processes().num_processes)
    arguments = TrainingArguments(
        output_dir=str(folder),
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
    # The settings decide, not accelerate's file.
    arguments.mixed_precision = "bf16" if arguments.bf16 else "no"
    return arguments


def steps_of(records: int, settings: TrainSettings, processes: int) -> int:
    """How many steps of the optimizer a training on `records` records takes."""
    batches = {"batch_size": settings.batch_size, "gradient_accumulation": settings.gradient_accumulation}
    return settings.epochs * steps_per_epoch(records, **batches, processes=processes)
