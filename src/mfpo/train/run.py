"""Training (paper, sections 3.2 and 3.3): one `transformers.Trainer` a stage, the policy going on from stage to stage.

A run folder holds `config.yaml`, `made_by.json`, `metrics.jsonl`, `reference.parquet`, `summary.json` and `model/`.
"""

import itertools
import os
import shutil
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from accelerate.utils.memory import clear_device_cache
from peft import PeftConfig
from transformers import AutoModelForImageTextToText
from transformers.integrations import get_available_reporting_integrations

from mfpo.errors import MfpoError
from mfpo.folders import fingerprint, writing
from mfpo.logprobs.pairs import Pairs
from mfpo.models import device, load_processor, load_weights, model_files, quiet, stored_dtype
from mfpo.rank.levels import level_names, stages
from mfpo.records import TEXT_COLUMNS, column, read_dataset
from mfpo.train.card import hub_name
from mfpo.train.objectives import OBJECTIVES
from mfpo.train.policy import computes_in_bf16, wanted_attention, weights_dtype
from mfpo.train.processes import as_first_says, common_folder, processes, say
from mfpo.train.reference import reference_key, sequence_hashes
from mfpo.train.run_stage import Plan, Run, run_stage
from mfpo.train.settings import TrainSettings


@quiet()
def train(data: Path, model: Path, out: Path, settings: TrainSettings) -> None:
    """Train `model` on the records in `data` and write the run folder `out`.

    Started again after a kill, it goes on from the last checkpoint. Started by `accelerate launch` or `torchrun`, all
    processes train together and the first one writes. Raises MfpoError before the first step when data, model and
    settings do not fit each other, and at a step whose loss or gradient is not finite.
    """
    settings = settings.resolved()
    check_settings(model, settings)
    dataset = open_data(data, settings)
    plan = make_plan(data, dataset, settings)
    processor = load_processor(model)
    pairs = open_pairs(dataset, processor, settings)
    weigh = OBJECTIVES[settings.method].weigh
    made_by = {"command": "train", "data": str(data), "model": str(model), "settings": asdict(settings)}
    made_by |= as_first_says(files_of(data, model) if processes().is_main_process else None)
    computed_by = {
        "model": made_by["model_files"],
        "bf16": computes_in_bf16(settings),
        "in_4bit": settings.quantize_4bit,
        "weights": str(weights_dtype(settings)),
        "device": device().type,
    }
    key = reference_key(
        **computed_by,
        max_length=settings.max_length,
        attention=wanted_attention(settings),
        **(settings.options_of(weigh) if weigh else {}),
    )
    hashes = sequence_hashes(dataset, pairs.names, paired=weigh is not None)
    if processes().num_processes > 1:
        say(f"{processes().num_processes} processes train together")
    with common_folder(out, made_by | {"processes": processes().num_processes}) as folder:
        run = Run(model, data, folder, settings, processor, pairs, hashes, key, tower_key=reference_key(**computed_by))
        if processes().is_main_process:
            config = yaml.safe_dump(asdict(settings), sort_keys=False)
            (folder / "config.yaml").write_text(config, encoding="utf-8")
        if not (folder / "model").exists():
            for number in range(len(plan)):
                plan = run_stage(run, plan, number)
                # A reference cycle: free the weights before the next stage loads its own.
                clear_device_cache(garbage_collection=True)
        processes().wait_for_everyone()
        if processes().is_main_process:
            if not (folder / "model").exists():
                with writing("the trained model", folder):
                    finish(run, run.end(len(plan) - 1, plan[-1][0]))
            if not settings.keep_stages:
                shutil.rmtree(folder / "stages", ignore_errors=True)


def finish(run: Run, end: Path) -> None:
    """Make what the last stage has left the run's model.

    A whole model gets the precision that its source is stored in; the stages before have float32, as small steps would
    be lost from one to the next. An adapter names a base from the hub as others find it, not by its folder here.
    """
    dtype = stored_dtype(run.model)
    model = run.folder / "model"
    hub = hub_name(run.model)
    if run.settings.lora_rank and hub:
        config = PeftConfig.from_pretrained(end)
        config.base_model_name_or_path, config.revision = hub, run.model.name
        config.save_pretrained(end)
    if run.settings.lora_rank or dtype == torch.float32:
        end.rename(model)
        return
    partial = model.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(end, partial, ignore=shutil.ignore_patterns("*.safetensors*"))
    load_weights(AutoModelForImageTextToText, end, dtype=dtype).save_pretrained(partial)
    partial.rename(model)
    shutil.rmtree(end)


def open_pairs(dataset: datasets.Dataset, processor: Any, settings: TrainSettings) -> Pairs:
    """The records as the method reads them."""
    method = OBJECTIVES[settings.method]
    weigh = partial(method.weigh, **settings.options_of(method.weigh)) if method.weigh else None
    needs_images = method.needs_rejected_images
    return Pairs(dataset, processor, rejected_images=needs_images, max_length=settings.max_length, weigh=weigh)


def files_of(data: Path, model: Path) -> dict[str, Any]:
    """Hashes of the dataset and of the model."""
    return {"data_files": fingerprint(data, "*.parquet"), "model_files": model_files(model)}


def check_settings(model: Path, settings: TrainSettings) -> None:
    """Raises MfpoError when the settings do not fit the model or what is installed."""
    if settings.lora_rank and (model / "adapter_config.json").exists():
        raise MfpoError(
            f"{model}: an adapter cannot be the base of another one; merge it first with `mfpo merge {model} --out DIR`"
        )
    if settings.quantize_4bit and device().type != "cuda":
        raise MfpoError("quantize_4bit needs a GPU, and there is none; set quantize_4bit=false")
    if settings.quantize_4bit and find_spec("bitsandbytes") is None:
        raise MfpoError("quantize_4bit needs bitsandbytes; run `pip install bitsandbytes`")
    if settings.lora_rank and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise MfpoError(
            "FSDP needs all weights to be trainable and in one precision; train adapters with ddp.yaml instead"
        )
    trackers = get_available_reporting_integrations()
    if settings.report_to not in ("none", *trackers):
        raise MfpoError(
            f"report_to is {settings.report_to!r}, but no such tracker is installed (there are: "
            f"{', '.join(sorted(trackers)) or 'none at all'}); `pip install` it first, or leave report_to out"
        )


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
                f"{', '.join(sorted(kinds))}; run `mfpo build` with `corruption={method.corruption}`"
            )
    return dataset


def make_plan(data: Path, dataset: datasets.Dataset, settings: TrainSettings) -> Plan:
    """The stages. Raises MfpoError when the levels of a curriculum say nothing or one has no records."""
    if not settings.curriculum:
        return [("all", list(range(len(dataset))))]
    plan = stages(column(dataset, "level"))
    names = {name for name, _ in plan}
    count = next(count for count in itertools.count(len(names)) if names <= {*level_names(count)})
    empty = [name for name in level_names(count) if name not in names]
    if empty:
        raise MfpoError(
            f"{data}: level {', '.join(empty)} has no records; rank more records, or set curriculum=false to train on "
            "all at once"
        )
    if "entropy" in dataset.column_names and len(set(column(dataset, "entropy"))) == 1 < len(dataset):
        raise MfpoError(
            f"{data}: all records have the same entropy, so that their levels mean nothing; rank them with another "
            "model or entropy, or set curriculum=false"
        )
    return plan
