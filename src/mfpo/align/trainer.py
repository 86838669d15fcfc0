"""Training (paper, sections 3.2 and 3.3): one `transformers.Trainer` a stage, the policy going on from stage to stage.

A run folder holds `config.yaml`, `made_by.json`, `metrics.jsonl`, `reference.parquet`, `summary.json` and `model/`.
"""

import json
import shutil
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import yaml
from transformers.integrations import get_available_reporting_integrations

from mfpo.align.curriculum import LEVELS, stages
from mfpo.align.objectives import OBJECTIVES
from mfpo.align.pairs import Pairs
from mfpo.align.policy import computes_in_bf16
from mfpo.align.processes import as_first_says, common_folder, processes
from mfpo.align.reference import reference_key, sequence_hashes
from mfpo.align.run_stage import Plan, Run, run_stage
from mfpo.align.train_settings import TrainSettings
from mfpo.errors import MfpoError
from mfpo.folders import fingerprint
from mfpo.models import device, find_model, load_processor, quiet
from mfpo.records import TEXT_COLUMNS, column, read_dataset


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
    key = reference_key(
        model=made_by["model_files"],
        max_length=settings.max_length,
        bf16=computes_in_bf16(settings),
        in_4bit=settings.quantize_4bit,
        device=device().type,
        **(settings.options_of(weigh) if weigh else {}),
    )
    hashes = sequence_hashes(dataset, pairs.names, paired=weigh is not None)
    with common_folder(out, made_by | {"processes": processes().num_processes}) as folder:
        run = Run(model, data, folder, settings, processor, pairs, hashes, key)
        if processes().is_main_process:
            config = yaml.safe_dump(asdict(settings), sort_keys=False)
            (folder / "config.yaml").write_text(config, encoding="utf-8")
        if not (folder / "model").exists():
            for number in range(len(plan)):
                run_stage(run, plan, number)
        processes().wait_for_everyone()
        if processes().is_main_process:
            if not (folder / "model").exists():
                run.end(len(plan) - 1, plan[-1][0]).rename(folder / "model")
            shutil.rmtree(folder / "stages", ignore_errors=True)


def open_pairs(dataset: datasets.Dataset, processor: Any, settings: TrainSettings) -> Pairs:
    """The records as the method reads them."""
    method = OBJECTIVES[settings.method]
    weigh = partial(method.weigh, **settings.options_of(method.weigh)) if method.weigh else None
    needs_images = method.needs_rejected_images
    return Pairs(dataset, processor, rejected_images=needs_images, max_length=settings.max_length, weigh=weigh)


def files_of(data: Path, model: Path) -> dict[str, Any]:
    """Hashes of the dataset and of the model, for an adapter of its base too."""
    adapter = model / "adapter_config.json"
    base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"] if adapter.exists() else None
    folders = [model] if base is None else [model, find_model(base)]
    return {"data_files": fingerprint(data, "*.parquet"), "model_files": [fingerprint(path, "*") for path in folders]}


def check_settings(model: Path, settings: TrainSettings) -> None:
    """Raises MfpoError when the settings do not fit the model or what is installed."""
    if settings.lora_rank and (model / "adapter_config.json").exists():
        raise MfpoError(f"{model}: an adapter cannot be the base of another one; merge it first with `mfpo merge`")
    if settings.quantize_4bit and device().type != "cuda":
        raise MfpoError("quantize_4bit needs a GPU, and there is none; set quantize_4bit=false")
    if settings.quantize_4bit and find_spec("bitsandbytes") is None:
        raise MfpoError("quantize_4bit needs bitsandbytes; run `pip install bitsandbytes`")
    trackers = get_available_reporting_integrations()
    if settings.report_to not in ("none", *trackers):
        known = ", ".join(["none", *sorted(trackers)])
        raise MfpoError(f"report_to is {settings.report_to!r}, but installed are {known}; install the tracker first")


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


def make_plan(data: Path, dataset: datasets.Dataset, settings: TrainSettings) -> Plan:
    """The stages. Raises MfpoError when the levels of a curriculum say nothing or one has no records."""
    if not settings.curriculum:
        return [("all", list(range(len(dataset))))]
    plan = stages(column(dataset, "level"))
    names = [name for name, _ in plan]
    last = names[-1].removeprefix("level-")
    wanted = [f"level-{number}" for number in range(1, int(last) + 1)] if last.isdecimal() else LEVELS
    empty = [name for name in wanted if name not in names]
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
