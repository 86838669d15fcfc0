"""Runs that are killed for real, or that fill the disk, end with the same bytes as runs that are left alone."""

import errno
import resource
import shutil
import signal
from pathlib import Path

import pytest

from fixtures.killed_runs import train_until
from fixtures.processes import start
from fixtures.runs import PLAIN, STAGED, Killed, assert_same_run
from mfpo.errors import MfpoError
from mfpo.train import run as run_module
from mfpo.train.progress import StageLog, last_checkpoint
from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings
from mfpo.train.trainer import PreferenceTrainer

CHECKPOINTED = PLAIN | {"save_steps": 1}


@pytest.fixture(scope="module")
def lora_stages(tiny_llava, ranked, tmp_path_factory) -> Path:
    settings = TrainSettings(**STAGED, lora_rank=4, rerank=True, reset_reference=True)
    return train(ranked, tiny_llava, tmp_path_factory.mktemp("whole") / "run", settings)


@pytest.mark.parametrize(
    ("settings", "whole", "every"),  # kills fall within a checkpoint, between stages, at the end
    [({}, "staged_run", 14), ({"lora_rank": 4, "rerank": True, "reset_reference": True}, "lora_stages", 11)],
)
def test_run_killed_again_and_again_ends_like_one_left_alone(
    settings, whole, every, request, tiny_llava, ranked, tmp_path
):
    out, deaths = tmp_path / "run", 0
    while not out.exists():
        # A process does some of what the one before has done, and must come further than it.
        until = every * (deaths + 1)
        process = start(train_until, until, ranked, tiny_llava, out, TrainSettings(**STAGED | settings))
        process.join(100)
        assert process.exitcode in (0, -signal.SIGKILL)
        deaths += process.exitcode != 0
    assert deaths >= 4, "it was hardly killed"
    assert_same_run(out, request.getfixturevalue(whole))


def test_kill_while_the_stages_are_removed_is_survived(plain_run, tiny_llava, preference_data, tmp_path, monkeypatch):
    remove = shutil.rmtree

    def remove_half(path, **kwargs):
        if Path(path).name != "stages":
            return remove(path, **kwargs)
        for file in list(Path(path).rglob("*.safetensors")):
            file.unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_module.shutil, "rmtree", remove_half)
        with pytest.raises(Killed):
            train(preference_data, tiny_llava, tmp_path / "run", TrainSettings(**CHECKPOINTED))
    train(preference_data, tiny_llava, tmp_path / "run", TrainSettings(**CHECKPOINTED))
    assert_same_run(tmp_path / "run", plain_run)


def test_full_disk_leaves_the_checkpoint_before_whole(plain_run, tiny_llava, preference_data, tmp_path, monkeypatch):
    """A limit of a file's size stands for the disk: the optimizer's state does not fit any more."""
    write = StageLog.write
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_and_fill(log, metrics, step):
        write(log, metrics, step)
        if step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))

    with monkeypatch.context() as patch:
        patch.setattr(StageLog, "write", write_and_fill)
        try:
            with pytest.raises(
                MfpoError, match=r"the checkpoint of step 2 cannot be written \(.*\d MiB are free"
            ) as error:
                train(preference_data, tiny_llava, tmp_path / "run", TrainSettings(**CHECKPOINTED))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    (checkpoints,) = (tmp_path / "run.partial" / "stages").glob("*.checkpoints")
    checkpoint, step = last_checkpoint(checkpoints)
    assert step == 1
    assert (checkpoint / "optimizer.pt").stat().st_size > 2000
    train(preference_data, tiny_llava, tmp_path / "run", TrainSettings(**CHECKPOINTED))
    assert_same_run(tmp_path / "run", plain_run)


def test_full_disk_at_the_end_of_a_stage_leaves_the_last_checkpoint(
    plain_run, tiny_llava, preference_data, tmp_path, monkeypatch
):
    save = PreferenceTrainer.save_model

    def fill_and_save(trainer, folder, _internal_call=False):
        if not _internal_call:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(trainer, folder, _internal_call)

    with monkeypatch.context() as patch:
        patch.setattr(PreferenceTrainer, "save_model", fill_and_save)
        with pytest.raises(MfpoError, match=r"the end of stage all cannot be written \(.*No space left on device"):
            train(preference_data, tiny_llava, tmp_path / "run", TrainSettings(**CHECKPOINTED))
    train(preference_data, tiny_llava, tmp_path / "run", TrainSettings(**CHECKPOINTED))
    assert_same_run(tmp_path / "run", plain_run)


@pytest.mark.parametrize(
    ("change", "difference"), [({"seed": 1}, "seed was 0 and is 1"), ({"beta": 0.2}, "beta was 0.1 and is 0.2")]
)
def test_killed_run_is_neither_continued_nor_removed_by_other_settings(
    change, difference, tiny_llava, preference_data, tmp_path, monkeypatch
):
    def die(trainer, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(PreferenceTrainer, "train", die)
        with pytest.raises(Killed):
            train(preference_data, tiny_llava, tmp_path / "run", TrainSettings(**PLAIN))
    before = sorted(path.name for path in (tmp_path / "run.partial").iterdir())
    with pytest.raises(
        MfpoError, match=rf"run.partial belongs to a run with other settings: {difference}; repeat that command"
    ):
        train(preference_data, tiny_llava, tmp_path / "run", TrainSettings(**PLAIN | change))
    assert sorted(path.name for path in (tmp_path / "run.partial").iterdir()) == before


def test_half_a_line_of_metrics_is_forgotten(tmp_path):
    log = StageLog(tmp_path / "metrics.jsonl", "hard", 10)
    log.write({"loss": 1.0}, 1)
    log.write({"loss": 2.0}, 2)
    with log.path.open("a") as file:
        file.write('{"stage": "ha')
    log.forget_after(1)
    assert log.path.read_text() == '{"stage": "hard", "step": 11, "loss": 1.0}\n'


def test_checkpoint_without_its_last_file_or_with_half_of_it_does_not_count(tmp_path):
    for step, state in ((5, "{}"), (40, '{"epo'), (100, None), (30, '{"epoch": 1.0}')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == (tmp_path / "checkpoint-30", 30)
    assert last_checkpoint(tmp_path / "none") == (None, 0)
