"""Held-out pairs measured while a model is trained, the best model kept by them, and Ctrl-C in between."""

import os
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from fixtures.runs import PLAIN, assert_same_run, lasting
from mfpo.dataset import read_dataset
from mfpo.errors import MfpoError
from mfpo.files import read_json
from mfpo.models import load_model
from mfpo.probe.dependence import pair_logps
from mfpo.processors import load_processor
from mfpo.train.interruption import Interruption
from mfpo.train.progress import StageLog
from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings
from mfpo.train.trainer import PreferenceTrainer

MEASURED = PLAIN | {
    "logging_steps": 2,
    "save_steps": 2,
    "eval_steps": 1,
    "eval_on_start": True,
    "keep_best": "eval/logps/rejected",
    "keep_stages": True,
}


@pytest.fixture(scope="module")
def held_out(preference_data, tmp_path_factory) -> Path:
    """Other records than those trained on, as far as there are any: the last 6."""
    folder = tmp_path_factory.mktemp("eval") / "data"
    folder.mkdir()
    read_dataset(preference_data).select(range(8, 14)).to_parquet(folder / "train-00000.parquet")
    return folder


@pytest.fixture(scope="module")
def measured_run(tiny_llava, preference_data, held_out, tmp_path_factory) -> Path:
    settings = TrainSettings(**MEASURED, eval=str(held_out))
    return train(preference_data, tiny_llava, tmp_path_factory.mktemp("measured") / "run", settings)


def split(run: Path) -> tuple[list[dict], list[dict]]:
    """The lines of the training, and those of held-out pairs."""
    lines = lasting(run)
    return [line for line in lines if "loss" in line], [line for line in lines if "eval/loss" in line]


def test_measuring_changes_neither_weights_nor_metrics_of_the_training(measured_run, plain_run):
    last, plain = (folder / "model.safetensors" for folder in (measured_run / "stages" / "0-all", plain_run / "model"))
    assert last.read_bytes() == plain.read_bytes()
    lines, every = split(measured_run)[0], lasting(plain_run)
    assert [line["step"] for line in lines] == [2, 4]
    records = [4, 4, 4, 2]
    for line, (first, second), (n, m) in zip(lines, (every[:2], every[2:]), (records[:2], records[2:]), strict=True):
        for name in ("loss", "rewards/margins", "logps/chosen"):
            assert line[name] == pytest.approx((n * first[name] + m * second[name]) / (n + m), rel=1e-6)


def test_figures_are_those_of_the_model_on_the_held_out_pairs(measured_run, tiny_llava, held_out):
    pairs = read_dataset(held_out)
    base, last = (
        pair_logps(load_model(folder), load_processor(tiny_llava), pairs)
        for folder in (tiny_llava, measured_run / "stages" / "0-all")
    )
    lines = split(measured_run)[1]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    ratios = last - base
    margins, image_margins = 0.1 * (ratios[:, 0] - ratios[:, 1]), 0.1 * (ratios[:, 0] - ratios[:, 2])
    expected = {
        "eval/loss": -torch.nn.functional.logsigmoid(margins).mean(),
        "eval/rewards/margins": margins.mean(),
        "eval/rewards/accuracies": (margins > 0).float().mean(),
        "eval/rewards/image_margins": image_margins.mean(),
        "eval/logps/rejected": last[:, 1].mean(),
        "eval/image_dependence": (last[:, 0] - last[:, 2]).mean(),
    }
    assert {name: lines[-1][name] for name in expected} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, abs=1e-4
    )
    assert lines[0]["eval/image_dependence"] == pytest.approx((base[:, 0] - base[:, 2]).mean().item(), abs=1e-4)
    assert lines[0]["eval/rewards/margins"] == pytest.approx(0, abs=1e-6)
    table = pq.read_table(measured_run / "eval_reference.parquet").drop_columns("id").to_pandas()
    torch.testing.assert_close(torch.tensor(table.to_numpy()), base, rtol=0, atol=1e-4)
    assert list((held_out / ".reference").glob("*.parquet"))


def test_best_model_is_kept_and_named(measured_run, tiny_llava, held_out):
    lines = split(measured_run)[1]
    best = min(lines, key=lambda line: line["eval/logps/rejected"])
    kept = read_json(measured_run / "summary.json")["kept"]
    assert kept == {name: best[name] for name in ("stage", "step", "eval/logps/rejected")}
    logps = pair_logps(load_model(measured_run / "model"), load_processor(tiny_llava), read_dataset(held_out))
    assert logps[:, 1].mean().item() == pytest.approx(best["eval/logps/rejected"], abs=1e-4)
    assert str(held_out.parent) not in (measured_run / "model" / "README.md").read_text()
    names = {path.name for path in (measured_run / "stages").iterdir()}
    assert names == {"0-all"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_ends_like_one_left_alone(
    number, measured_run, tiny_llava, preference_data, held_out, tmp_path, monkeypatch
):
    """In the middle of a window of metrics, and between two checkpoints."""
    write, settings = StageLog.write, TrainSettings(**MEASURED, eval=str(held_out))

    def write_and_ask(log, metrics, step):
        write(log, metrics, step)
        if step == 2 and "loss" in metrics:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(StageLog, "write", write_and_ask)
        with pytest.raises(KeyboardInterrupt):
            train(preference_data, tiny_llava, tmp_path / "run", settings)
    assert signal.getsignal(number) is before
    (checkpoints,) = (tmp_path / "run.partial" / "stages").glob("*.checkpoints")
    assert [path.name for path in checkpoints.glob("checkpoint-*")] == ["checkpoint-3"]
    train(preference_data, tiny_llava, tmp_path / "run", settings)
    assert_same_run(tmp_path / "run", measured_run)


def test_second_ctrl_c_ends_at_once(tiny_llava, preference_data, tmp_path, monkeypatch):
    compute_loss, steps = PreferenceTrainer.compute_loss, []

    def ask_twice(trainer, *args, **kwargs):
        steps.append(trainer.state.global_step)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return compute_loss(trainer, *args, **kwargs)

    monkeypatch.setattr(PreferenceTrainer, "compute_loss", ask_twice)
    with pytest.raises(KeyboardInterrupt):
        train(preference_data, tiny_llava, tmp_path / "run", TrainSettings(**PLAIN))
    assert steps == [0]
    assert not list((tmp_path / "run.partial" / "stages").rglob("checkpoint-*"))


def test_workers_of_the_data_loader_leave_ctrl_c_to_the_training(capfd):
    interruption = Interruption()
    with interruption.by_signals():
        if (worker := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(interruption.is_asked)
        assert os.waitpid(worker, 0)[1] == 0
    assert not capfd.readouterr().err


def test_trainer_of_ones_own_measures_too(measured_run, tiny_llava, preference_data, held_out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = TrainSettings(**PLAIN, max_steps=1, eval=str(held_out))
    trainer = PreferenceTrainer(
        load_model(tiny_llava),
        settings,
        processing_class=load_processor(tiny_llava),
        train_dataset=read_dataset(preference_data),
    )
    trainer.args.output_dir = str(tmp_path)
    assert trainer.evaluate()["eval_rewards/margins"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(MfpoError, match="that the trainer was made with"):
        trainer.evaluate(read_dataset(held_out))
    trainer.train()
    figures = trainer.evaluate()
    expected = split(measured_run)[1][1]
    assert figures["eval_image_dependence"] == pytest.approx(expected["eval/image_dependence"], abs=1e-5)
    assert figures["eval_rewards/margins"] == pytest.approx(expected["eval/rewards/margins"], abs=1e-5)


def test_held_out_pairs_without_rejected_images_are_refused_first(tiny_llava, preference_data, tmp_path):
    shutil.copytree(preference_data, tmp_path / "data")
    for shard in (tmp_path / "data").glob("*.parquet"):
        pq.write_table(pq.read_table(shard).drop_columns("rejected_images"), shard)
    settings = TrainSettings(**PLAIN, eval=str(tmp_path / "data"))
    with pytest.raises(MfpoError, match="data: column rejected_images is missing; run `mfpo build` first"):
        train(preference_data, tiny_llava, tmp_path / "run", settings)
    assert not (tmp_path / "run.partial").exists()


def test_a_figure_that_is_never_measured_is_told_at_the_first_evaluation(
    tiny_llava, preference_data, held_out, tmp_path, capsys
):
    settings = PLAIN | {"method": "mfpo", "image_loss": "joint", "curriculum": False, "eval": str(held_out)}
    settings["keep_best"] = "eval/loss/image"
    with pytest.raises(MfpoError, match="keep_best is eval/loss/image, which these held-out pairs do not have"):
        train(preference_data, tiny_llava, tmp_path / "run", TrainSettings(**settings))
    late = PLAIN | {"eval": str(held_out), "keep_best": "eval/loss", "eval_delay": 100}
    train(preference_data, tiny_llava, tmp_path / "late", TrainSettings(**late))
    assert "eval/loss was never measured: the last model is kept" in capsys.readouterr().err
