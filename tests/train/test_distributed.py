"""Training in two processes on the CPU (gloo) against one process, and the shipped accelerate configs."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from fixtures.runs import STAGED, metrics_of
from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.sequences import sequence_logps
from mfpo.models import load_model, load_processor
from mfpo.records import read_dataset
from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
NO_GPU = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
KINDS = {"full": {}, "lora": {"lora_rank": 4, "rerank": True, "reset_reference": True, "gradient_accumulation": 2}}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, ranked) -> dict:
    measured = {"eval": str(ranked), "eval_steps": 2} if request.param == "lora" else {}
    return STAGED | KINDS[request.param] | measured


@pytest.fixture(scope="module")
def one(kind, tiny_llava, ranked, tmp_path_factory) -> Path:
    """A run of one process with batches of 4."""
    out = tmp_path_factory.mktemp("one") / "run"
    train(ranked, tiny_llava, out, TrainSettings(**kind))
    return out


def command(data: Path, model: Path, out: Path, settings: dict) -> list[str]:
    given = [f"{name}={value}" for name, value in (settings | {"batch_size": 2}).items()]
    return [*TORCHRUN, "-m", "mfpo.cli", "train", str(data), "--model", str(model), "--out", str(out), *given]


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


@pytest.mark.parametrize("kind", ["lora"], indirect=True)
def test_two_processes_that_are_killed_go_on_as_one_with_batches_of_four(kind, one, tiny_llava, ranked, tmp_path):
    """As the shipped config launches them. Levels of 5, 5 and 4 records: the last batches are filled up, which must
    not count."""
    data = tmp_path / "data"  # without the kept reference, so that the processes share the work
    shutil.copytree(ranked, data, ignore=shutil.ignore_patterns(".reference"))
    run = tmp_path / "run"
    assert "2 processes train together" in kill_and_resume(
        launch("ddp.yaml", command(data, tiny_llava, run, kind)), run
    )
    assert_same_curve(run, one)
    assert sum("eval/image_dependence" in line for line in metrics_of(run)) == 3, "held-out pairs are measured too"
    for ours, theirs in zip(*(pq.read_table(out / "reference.parquet").to_pylist() for out in (run, one)), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def kill_and_resume(start: list[str], out: Path) -> str:
    """Start the run `out`, kill all its processes in the first stage, start it again, and return what it says."""
    first = subprocess.Popen(start, stderr=subprocess.DEVNULL, env=NO_GPU)
    log = out.with_name("run.partial") / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while (not log.exists() or log.read_text().count("\n") < 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in [*psutil.Process(first.pid).children(recursive=True), first]:  # each worker has its own session
        process.kill()
    first.wait()
    assert not out.exists(), "it was killed too late"
    done = subprocess.run(start, capture_output=True, text=True, timeout=300, env=NO_GPU)
    assert done.returncode == 0, done.stderr[-2000:]
    # A loaded machine may kill it in the second stage.
    assert "going on from step" in done.stderr or "stage 1 of" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("kind", ["full"], indirect=True)
def test_sharded_run_that_is_killed_goes_on_as_one_process(kind, one, tiny_llava, ranked, tmp_path):
    out = tmp_path / "run"
    start = launch("fsdp2.yaml", command(ranked, tiny_llava, out, kind))
    module = start.index("mfpo.cli")
    start[module - 1 : module + 1] = [str(Path(__file__).with_name("sharded_run.py"))]
    kill_and_resume(start, out)
    assert_same_curve(out, one)
    pairs = Pairs(read_dataset(ranked), load_processor(out / "model"), cells=TEXT_AND_IMAGE, max_length=999)
    batch = pairs.collate([pairs[0], pairs[1]])
    batch.pop("rows")
    with torch.no_grad():
        models = map(load_model, (out / "model", one / "model", tiny_llava))
        sharded, whole, untrained = (sequence_logps(model, batch) for model in models)
    torch.testing.assert_close(sharded, whole, rtol=1e-3, atol=1e-2)
    assert (sharded - untrained).abs().max() > 1


def launch(config: str, start: list[str]) -> list[str]:
    """The command of `command`, started by accelerate with a shipped config."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]
    return [*launcher, "--num_processes", "2", *start[len(TORCHRUN) :]]


def test_sharded_model_has_the_log_probabilities_and_gradients_of_the_whole(tiny_llava, preference_data):
    script = str(Path(__file__).with_name("sharded_logps.py"))
    done = subprocess.run([*TORCHRUN, script, str(preference_data), str(tiny_llava)], capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def test_a_mistake_is_told_once(tiny_llava, ranked, tmp_path):
    start = command(ranked, tiny_llava, tmp_path / "run", {"learning_rat": 1e-3})
    done = subprocess.run(start, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert done.stderr.count("no setting is named 'learning_rat', did you mean 'learning_rate'?") == 1


def test_shipped_configs_are_read_by_accelerate():
    kinds = {path.stem: load_config_from_file(str(path)).distributed_type.value for path in CONFIGS.rglob("*.yaml")}
    assert kinds == {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed": "DEEPSPEED"}
