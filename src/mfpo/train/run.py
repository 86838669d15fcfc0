"""Training (paper, sections 3.2 and 3.3): open the data, plan the stages, train each against the reference, save.

A run folder holds `config.yaml`, `made_by.json`, `metrics.jsonl`, `reference.parquet`, `summary.json` and `model/`.
"""

import os
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from accelerate.utils.memory import clear_device_cache
from transformers import AutoModelForImageTextToText
from transformers.integrations import get_available_reporting_integrations

from mfpo.dataset import dataset_hash
from mfpo.errors import MfpoError
from mfpo.files import read_json
from mfpo.folders import check_new, write_json, writing
from mfpo.hub import find_model
from mfpo.models import load_model, load_weights, model_files, quiet, stored_dtype
from mfpo.processors import processor_of
from mfpo.train.arguments import check_arguments, steps_of_stages
from mfpo.train.base import MODEL_IN_MEMORY, check_base, save_model, title
from mfpo.train.data import data_name, open_data, open_pairs
from mfpo.train.plan import Plan, plan_stages
from mfpo.train.processes import as_first_says, common_folder, processes, say
from mfpo.train.push import open_repository, push
from mfpo.train.settings import TrainSettings
from mfpo.train.stage import Run, train_stage


def train(
    data: Path | str | datasets.Dataset,
    model: Any,
    out: Path | str,
    settings: TrainSettings | None = None,
    *,
    processor: Any = None,
) -> Any:
    """Train `model` on the records in `data`, write the run folder `out`, and return the trained model.

    `data` is a folder that `mfpo build` or `mfpo rank` wrote, or a dataset with their columns. `model` is a folder, a
    name on the Hub, or a transformers model in memory, with its `processor`; such a model is not changed.

    Called again after a kill, it resumes from the last checkpoint. Under `accelerate launch` or `torchrun`, all
    processes train together and the first one writes. Raises MfpoError before the first step when data, model and
    settings do not fit each other, and at a step whose loss or gradient is not finite.
    """
    folder = run(
        Path(data) if isinstance(data, str) else data,
        find_model(str(model)) if isinstance(model, str | Path) else model,
        Path(out),
        settings or TrainSettings(),
        processor=processor,
    )
    return load_model(folder / "model")


@quiet()
def run(
    data: Path | datasets.Dataset, model: Any, out: Path, settings: TrainSettings, *, processor: Any = None
) -> Path:
    """Like `train`, but returns the run folder instead of loading the trained model."""
    check_new(out)
    settings = settings.resolved()
    check_settings(model, settings)
    this, plan = open_run(data, model, out, settings, processor)
    in_memory = not isinstance(model, Path)
    names = {"data": data_name(data), "model": MODEL_IN_MEMORY if in_memory else str(model)}
    made_by: dict[str, Any] = {"command": "train", **names, "settings": settings.shown()}
    hashed = {"data_files": data} | ({"eval_files": Path(settings.eval)} if settings.eval else {})
    for name, files in hashed.items():
        made_by[name] = as_first_says(dataset_hash(files) if processes().is_main_process else None)
    made_by["model_files"] = this.model_files
    # The first process pushes the model.
    is_pushed = settings.push_to_hub and processes().is_main_process
    repository = open_repository(settings, out) if is_pushed else None
    if processes().num_processes > 1:
        say(f"{processes().num_processes} processes train together")
    with common_folder(out, made_by | {"processes": processes().num_processes}) as folder:
        if processes().is_main_process:
            (folder / "config.yaml").write_text(yaml.safe_dump(settings.shown(), sort_keys=False), encoding="utf-8")
            if in_memory:
                save_model(model, processor, this.model)
        processes().wait_for_everyone()
        if not (folder / "model").exists():
            plan = _train_stages(this, plan)
        processes().wait_for_everyone()
        if processes().is_main_process:
            finish(this, this.end(len(plan) - 1, plan[-1][0]))
    if repository:
        push(out / "model", repository, settings)
    return out


def open_run(
    data: Path | datasets.Dataset, model: Any, out: Path, settings: TrainSettings, processor: Any
) -> tuple[Run, Plan]:
    """The run that the arguments ask for, and its stages, checked as far as they can be without the weights."""
    if not isinstance(model, Path):
        check_base(model)
    processor = processor_of(model, processor)
    dataset = open_data(data, settings)
    held_out = open_data(Path(settings.eval), settings, is_eval=True) if settings.eval else None
    plan = plan_stages(dataset, settings, data_name(data))
    steps_of_stages(plan, settings)  # refuses too few
    folder = out.with_name(out.name + ".partial")
    run = Run(
        model=model if isinstance(model, Path) else folder / "base",
        model_files=as_first_says(model_files(model, processor) if processes().is_main_process else None),
        titles=(title(model), data.resolve().name if isinstance(data, Path) else data_name(data)),
        dataset=dataset,
        pairs=open_pairs(dataset, processor, settings),
        cache=data if isinstance(data, Path) else folder,
        out=out,
        folder=folder,
        settings=settings,
        processor=processor,
    )
    if settings.eval and held_out:
        pairs = open_pairs(held_out, processor, settings, is_eval=True)
        run = replace(run, held_out=replace(run, dataset=held_out, pairs=pairs, cache=Path(settings.eval)))
    return run, plan


def _train_stages(run: Run, plan: Plan) -> Plan:
    for number in range(len(plan)):
        plan = train_stage(run, plan, number)
        # A reference cycle: free the weights before the next stage loads its own.
        clear_device_cache(garbage_collection=True)
    return plan


def check_settings(model: Any, settings: TrainSettings) -> None:
    """Raises MfpoError when the settings do not fit the model or what is installed."""
    check_arguments(settings)
    if settings.lora_rank and isinstance(model, Path) and (model / "adapter_config.json").exists():
        raise MfpoError(
            f"{model}: an adapter cannot be the base of another one; merge it first with `mfpo merge {model} --out DIR`"
        )
    if settings.quantize_4bit and find_spec("bitsandbytes") is None:
        raise MfpoError("quantize_4bit needs bitsandbytes; run `pip install 'mfpo[qlora]'`")
    if settings.lora_rank and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise MfpoError(
            "FSDP needs all weights to be trainable and in one precision; train adapters with ddp.yaml instead"
        )
    trackers = get_available_reporting_integrations()
    if settings.report_to not in ("none", *trackers):
        raise MfpoError(
            f"report_to is {settings.report_to!r}, but no such tracker is installed (installed: "
            f"{', '.join(sorted(trackers)) or 'none'}); `pip install` it first, or leave report_to out"
        )


def finish(run: Run, end: Path) -> None:
    """Make what the last stage has left, `end`, the run's model, and remove what no one needs any more.

    A whole model gets the precision that its source is stored in; the stages before have float32, as small steps would
    be lost from one to the next. With `keep_best` the best model takes the place of the last.
    """
    model = run.folder / "model"
    line = run.best.line() if run.best else {}
    if run.best and not line:
        say(f"{run.best.name} was never measured: the last model is kept")
    elif run.best:
        best = {name: value for name, value in line.items() if name in ("stage", "step", run.best.name)}
        say(f"the best {run.best.name}, {best[run.best.name]:.4g}, was at step {best['step']}: its model is kept")
        summary = read_json(run.folder / "summary.json") | {"kept": best}
        write_json(run.folder / "summary.json", summary)
        end = run.best.model(best["step"])
    dtype = stored_dtype(run.model)
    if not model.exists():
        with writing("the trained model", run.folder):
            if run.settings.lora_rank or dtype == torch.float32:
                end.rename(model)
            else:
                partial = model.with_suffix(".partial")
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(end, partial, ignore=shutil.ignore_patterns("*.safetensors*"))
                load_weights(AutoModelForImageTextToText, end, dtype=dtype).save_pretrained(partial)
                partial.rename(model)
                shutil.rmtree(end)
    if not run.settings.keep_stages:
        shutil.rmtree(run.folder / "stages", ignore_errors=True)
    if not run.settings.lora_rank:  # an adapter needs its base
        shutil.rmtree(run.folder / "base", ignore_errors=True)
