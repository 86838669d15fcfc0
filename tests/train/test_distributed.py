"""Training in two processes on the CPU (gloo) against one process, and the shipped accelerate configs."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser, prepare_multi_gpu_env

from fixtures import sharded_logps, sharded_run
from fixtures.processes import command, start_two
from fixtures.runs import STAGED, metrics_of
from mfpo.dataset import read_dataset
from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.sequences import sequence_logps
from mfpo.models import load_model
from mfpo.processors import load_processor
from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
LORA = STAGED | {"lora_rank": 4, "rerank": True, "reset_reference": True, "gradient_accumulation": 2}


def arguments(data: Path, model: Path, out: Path, settings: dict) -> list[Any]:
    given = [f"{name}={value}" for name, value in (settings | {"batch_size": 2}).items()]
    return ["train", data, "--model", model, "--out", out, *given]


def assert_same_curve(run: Path, other: Path) -> None:
    """Not the accuracies, which the last bit decides where policy and reference are still the same."""
    curves = [metrics_of(folder) for folder in (run, other)]
    assert [(line["stage"], line["step"]) for line in curves[0]] == [
        (line["stage"], line["step"]) for line in curves[1]
    ]
    for ours, theirs in zip(*curves, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("loss", "loss/text", "loss/image", "rewards/chosen", "rewards/image_margins", "logps/rejected"):
            name = name if name in ours else f"eval/{name}"  # a line of held-out pairs
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4), name
        if "loss" in ours:
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
            assert ours["learning_rate"] == theirs["learning_rate"]


def kill_in_the_first_stage(processes: list[Any], out: Path) -> None:
    log = out.with_name("run.partial") / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while (not log.exists() or log.read_text().count("\n") < 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    assert not out.exists(), "it was killed too late"


def end_of(processes: list[Any], log: Path) -> str:
    """What they printed."""
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * len(processes), log.read_text()[-2000:]
    return log.read_text()


def assert_went_on(printed: str) -> None:
    # A loaded machine may kill it in the second stage.
    assert "resuming from step" in printed or "stage 1 of" not in printed


def test_two_processes_that_are_killed_go_on_as_one_with_batches_of_four(tiny_llava, ranked, tmp_path):
    """Levels of 5, 5 and 4 records: the last batches are filled up, which must not count."""
    settings = LORA | {"eval": str(ranked), "eval_steps": 2}
    one = train(ranked, tiny_llava, tmp_path / "one", TrainSettings(**settings))
    data = tmp_path / "data"  # without the kept reference, so that the processes share the work
    shutil.copytree(ranked, data, ignore=shutil.ignore_patterns(".reference"))
    run, log = tmp_path / "run", tmp_path / "log.txt"
    mfpo, environment = arguments(data, tiny_llava, run, settings), environment_of(CONFIGS / "ddp.yaml")
    kill_in_the_first_stage(start_two(command, *mfpo, **environment), run)
    printed = end_of(start_two(command, *mfpo, log=log, **environment), log)
    assert_went_on(printed)
    assert "2 processes train together" in printed
    assert_same_curve(run, one)
    assert sum("eval/image_dependence" in line for line in metrics_of(run)) == 3, "held-out pairs are measured too"
    for ours, theirs in zip(*(pq.read_table(out / "reference.parquet").to_pylist() for out in (run, one)), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_sharded_run_that_is_killed_goes_on_as_one_process(staged_run, tiny_llava, ranked, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log.txt"
    mfpo = arguments(ranked, tiny_llava, out, STAGED)

    def begin() -> list[Any]:
        return start_two(sharded_run.main, *mfpo, log=log, **environment_of(CONFIGS / "fsdp2.yaml"))

    kill_in_the_first_stage(begin(), out)
    log.unlink()
    assert_went_on(end_of(begin(), log))
    assert_same_curve(out, staged_run)
    pairs = Pairs(read_dataset(ranked), load_processor(out / "model"), cells=TEXT_AND_IMAGE, max_length=999)
    batch = pairs.collate([pairs[0], pairs[1]])
    batch.pop("rows")
    with torch.no_grad():
        models = map(load_model, (out / "model", staged_run / "model", tiny_llava))
        sharded, whole, untrained = (sequence_logps(model, batch) for model in models)
    torch.testing.assert_close(sharded, whole, rtol=1e-3, atol=1e-2)
    assert (sharded - untrained).abs().max() > 1


def environment_of(config: Path) -> dict[str, str]:
    """What `accelerate launch` tells its processes by the environment."""
    given = launch_command_parser().parse_args(
        ["--config_file", str(config), "--num_processes", "2", "--main_process_port", "0", "script.py"]
    )
    told = prepare_multi_gpu_env(_validate_launch_command(given)[0])
    return {name: value for name, value in told.items() if value != os.environ.get(name)}


def test_sharded_model_has_the_log_probabilities_and_gradients_of_the_whole(tiny_llava, preference_data, tmp_path):
    log = tmp_path / "log.txt"
    end_of(start_two(sharded_logps.main, preference_data, tiny_llava, log=log), log)


def test_a_mistake_is_told_once_by_the_processes_that_accelerate_launches():
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "ddp.yaml")]
    mistaken = ["train", "data", "--model", "m", "--out", "o", "learning_rat=1"]
    launch += ["--num_processes", "2", "--main_process_port", "0", "-m", "mfpo.cli", *mistaken]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert done.stderr.count("no setting is named 'learning_rat', did you mean 'learning_rate'?") == 1


def test_shipped_configs_are_read_by_accelerate():
    kinds = {path.stem: load_config_from_file(str(path)).distributed_type.value for path in CONFIGS.rglob("*.yaml")}
    assert kinds == {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed": "DEEPSPEED"}
