"""Runs that are killed for real, or that fill the disk, end with the same bytes as runs that are left alone."""

import errno
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mfpo.errors import MfpoError
from mfpo.rank.run import rank
from mfpo.rank.settings import RankSettings
from mfpo.train import run as trainer_module
from mfpo.train import run_stage as run_stage_module
from mfpo.train.run import train
from mfpo.train.settings import TrainSettings
from mfpo.train.stage import StageLog, last_checkpoint

FAST = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4, "logging_steps": 1, "save_steps": 1}
KINDS = {"full": {}, "lora": {"lora_rank": 4}, "rerank": {"rerank": True, "reset_reference": True}}


@pytest.fixture(scope="module")
def ranked(tiny_llava, preference_data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("rank") / "ranked"
    rank(preference_data, tiny_llava, out, RankSettings())
    return out


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tiny_llava, ranked, tmp_path_factory) -> tuple[dict, Path]:
    """The settings of a run, and the run that nobody disturbed."""
    settings = FAST | KINDS[request.param]
    out = tmp_path_factory.mktemp("whole") / "run"
    train(ranked, tiny_llava, out, TrainSettings(**settings))
    return settings, out


def assert_same_run(one: Path, other: Path) -> None:
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    logs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    for line in [line for log in logs for line in log]:
        del line["tokens/per_second"]
    assert logs[0] == logs[1]
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())


def test_run_killed_again_and_again_ends_like_one_left_alone(whole, tiny_llava, ranked, tmp_path):
    settings, run = whole
    # Kills fall on other operations for each number: within a checkpoint, between stages, at the end.
    every = 7 if "lora_rank" in settings else 10
    command = [sys.executable, str(Path(__file__).with_name("killed_runs.py")), str(ranked), str(tiny_llava)]
    command += [str(tmp_path / "run"), json.dumps(settings), str(every)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) >= 4, "it was hardly killed"
    assert_same_run(tmp_path / "run", run)


class Killed(BaseException):
    """Stands for a kill: nothing on the way catches it."""


def test_kill_while_the_stages_are_removed_is_survived(whole, tiny_llava, ranked, tmp_path, monkeypatch):
    settings, run = whole
    remove = shutil.rmtree

    def remove_half(path, **kwargs):
        if Path(path).name != "stages":
            return remove(path, **kwargs)
        for file in list(Path(path).rglob("*.safetensors")):
            file.unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.shutil, "rmtree", remove_half)
        with pytest.raises(Killed):
            train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**settings))
    train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**settings))
    assert_same_run(tmp_path / "run", run)


def test_full_disk_leaves_the_checkpoint_before_whole(whole, tiny_llava, ranked, tmp_path, monkeypatch):
    """A limit of a file's size stands for the disk: the optimizer's state does not fit any more."""
    settings, run = whole
    write = StageLog.write
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_and_fill(log, metrics, step):
        write(log, metrics, step)
        if log.first_step + step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))

    with monkeypatch.context() as patch:
        patch.setattr(StageLog, "write", write_and_fill)
        try:
            with pytest.raises(
                MfpoError, match=r"the checkpoint of step 2 cannot be written \(.*\d MiB are free"
            ) as error:
                train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**settings))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    (checkpoints,) = (tmp_path / "run.partial" / "stages").glob("*.checkpoints")
    checkpoint, step = last_checkpoint(checkpoints)
    assert step == 1
    assert (checkpoint / "optimizer.pt").stat().st_size > 2000
    train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**settings))
    assert_same_run(tmp_path / "run", run)


def test_full_disk_at_the_end_of_a_stage_leaves_the_last_checkpoint(whole, tiny_llava, ranked, tmp_path, monkeypatch):
    settings, run = whole
    save = run_stage_module._save

    def fill_and_save(trainer, *arguments):
        if trainer.state.global_step == 2:  # the last stage
            raise OSError(errno.ENOSPC, "No space left on device")
        save(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run_stage_module, "_save", fill_and_save)
        with pytest.raises(MfpoError, match=r"the end of stage hard cannot be written \(.*No space left on device"):
            train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**settings))
    train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**settings))
    assert_same_run(tmp_path / "run", run)


def test_checkpoint_without_its_last_file_or_with_half_of_it_does_not_count(tmp_path):
    for step, state in ((5, "{}"), (40, '{"epo'), (100, None), (30, '{"epoch": 1.0}')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == (tmp_path / "checkpoint-30", 30)
    assert last_checkpoint(tmp_path / "none") == (None, 0)
