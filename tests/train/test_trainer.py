"""Training runs on a random LLaVA: what a run folder holds, equal runs, killed runs, refused runs."""

import json
import math
import re
import shutil
import weakref
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM, TrainingArguments

from mfpo.cli import main
from mfpo.errors import MfpoError, RecordError, SettingError
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.sequences import collate, sequence_logps, token_logps
from mfpo.models import load_model, load_processor
from mfpo.rank.run import rank
from mfpo.rank.settings import RankSettings
from mfpo.records import column, read_dataset
from mfpo.train import run as trainer_module
from mfpo.train import run_stage as run_stage_module
from mfpo.train.card import hub_name
from mfpo.train.run import files_of, train
from mfpo.train.settings import TrainSettings
from mfpo.train.stage import StageLog
from mfpo.train.trainer import PreferenceTrainer, count_tokens, window_means

FAST = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4, "logging_steps": 1, "save_steps": 1}


@pytest.fixture(scope="module")
def ranked(tiny_llava, preference_data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("rank") / "ranked"
    rank(preference_data, tiny_llava, out, RankSettings())
    return out


@pytest.fixture(scope="module")
def run(tiny_llava, ranked, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("train") / "run"
    train(ranked, tiny_llava, out, TrainSettings(**FAST))
    return out


@pytest.fixture(scope="module")
def lora_run(tiny_llava, ranked, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("lora") / "run"
    train(ranked, tiny_llava, out, TrainSettings(**FAST, lora_rank=4))
    return out


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def lasting(run: Path) -> list[dict]:
    """The metrics without the one that is another in every run."""
    return [{name: value for name, value in line.items() if name != "tokens/per_second"} for line in metrics_of(run)]


def assert_same_weights(one: Path, other: Path) -> None:
    for file in sorted((one / "model").glob("*.safetensors")):
        assert file.read_bytes() == (other / "model" / file.name).read_bytes()


def test_run_folder_holds_what_it_should_and_no_checkpoints(run):
    names = {path.name for path in run.iterdir()}
    assert names == {"config.yaml", "made_by.json", "metrics.jsonl", "model", "reference.parquet", "summary.json"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["method"] == "mfpo"
    assert config["curriculum"] is True
    assert json.loads((run / "summary.json").read_text()) == {"records": 14, "cut_answers": 0}


def test_stages_go_from_easy_to_hard_with_steps_counted_over_all(run):
    lines = metrics_of(run)
    assert [line["stage"] for line in lines] == ["easy"] * 4 + ["medium"] * 4 + ["hard"] * 2
    assert [line["step"] for line in lines] == list(range(1, 11))


@pytest.mark.parametrize("folder", ["run", "lora_run"])
def test_before_the_first_step_policy_and_reference_are_one(folder, request):
    first = metrics_of(request.getfixturevalue(folder))[0]
    assert first["loss"] == pytest.approx(3 * math.log(2), abs=1e-5)
    for name in ("text", "image", "margin"):
        assert first[f"loss/{name}"] == pytest.approx(math.log(2), abs=1e-5)
    for name in ("chosen", "rejected", "image_rejected", "margins", "image_margins"):
        assert first[f"rewards/{name}"] == pytest.approx(0, abs=1e-5)


def test_training_raises_the_margins(run):
    lines = metrics_of(run)
    assert lines[-1]["rewards/margins"] > lines[0]["rewards/margins"] + 0.05
    assert lines[-1]["rewards/accuracies"] == 1.0
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.05


def test_metrics_average_over_the_logging_window(run, tiny_llava, ranked, tmp_path):
    settings = TrainSettings(**FAST | {"logging_steps": 3, "save_steps": 3})
    train(ranked, tiny_llava, tmp_path / "run", settings)
    easy = [line for line in metrics_of(run) if line["stage"] == "easy"]
    wide = [line for line in metrics_of(tmp_path / "run") if line["stage"] == "easy"]
    assert [line["step"] for line in wide] == [3, 4]
    # Five records in batches of 4 give 4, 1, 4 and 1 in a batch.
    expected = (4 * easy[0]["loss"] + easy[1]["loss"] + 4 * easy[2]["loss"]) / 9
    assert wide[0]["loss"] == pytest.approx(expected, abs=1e-6)
    assert wide[1]["rewards/chosen"] == pytest.approx(easy[3]["rewards/chosen"], abs=1e-6)
    for name in ("learning_rate", "grad_norm"):
        assert [line[name] for line in wide] == [pytest.approx(easy[step][name]) for step in (2, 3)]


def test_reference_is_the_untrained_model(run, tiny_llava, ranked):
    table = pq.read_table(run / "reference.parquet").to_pylist()
    pairs = Pairs(read_dataset(ranked), load_processor(tiny_llava), rejected_images=True, max_length=999)
    model = load_model(tiny_llava)
    for row in (0, 7, 13):
        batch = pairs.collate([pairs[row]])
        batch.pop("rows")
        with torch.no_grad():
            chosen, rejected, image = sequence_logps(model, batch).tolist()
        expected = {"id": pairs.ids[row], "chosen": chosen, "rejected": rejected, "rejected_image": image}
        assert table[row] == pytest.approx(expected, abs=1e-4)


def test_same_seed_gives_identical_metrics_and_weights(run, tiny_llava, ranked, tmp_path):
    train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**FAST))
    assert lasting(tmp_path / "run") == lasting(run)
    assert_same_weights(tmp_path / "run", run)


def test_files_of_an_adapter_are_those_of_its_base_too(lora_run, tiny_llava, ranked, tmp_path):
    shutil.copytree(tiny_llava, tmp_path / "base")
    shutil.copytree(lora_run / "model", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": str(tmp_path / "base")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    before = files_of(ranked, tmp_path / "adapter")
    (tmp_path / "base" / "generation_config.json").write_text("{}")
    after = files_of(ranked, tmp_path / "adapter")
    assert before["model_files"][0] == after["model_files"][0]
    assert before["model_files"][1] != after["model_files"][1]
    assert before["data_files"] == after["data_files"]


def test_another_seed_gives_another_order(run, tiny_llava, ranked, tmp_path):
    train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**FAST, seed=1))
    assert lasting(tmp_path / "run") != lasting(run)


class Killed(BaseException):
    """Stands for a kill: nothing on the way catches it."""


# In the first stage before and behind a checkpoint, in a later stage, and behind the last step of all.
@pytest.mark.parametrize("last_step", [1, 2, 6, 10])
@pytest.mark.parametrize("folder", ["run", "lora_run"])
def test_killed_run_ends_like_an_uninterrupted_one(
    folder, last_step, request, tiny_llava, ranked, tmp_path, monkeypatch
):
    whole = request.getfixturevalue(folder)
    settings = TrainSettings(**FAST | {"save_steps": 2}, lora_rank=4 if folder == "lora_run" else 0)
    write = StageLog.write

    def write_and_die(log, metrics, step):
        write(log, metrics, step)
        if log.first_step + step == last_step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StageLog, "write", write_and_die)
        with pytest.raises(Killed):
            train(ranked, tiny_llava, tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(run_stage_module, "find_reference", lambda *_, **__: pytest.fail("the reference was on disk"))
    train(ranked, tiny_llava, tmp_path / "run", settings)
    assert lasting(tmp_path / "run") == lasting(whole)
    assert_same_weights(tmp_path / "run", whole)


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("folder", ["run", "lora_run"])
def test_run_killed_between_stages_ends_like_an_uninterrupted_one(
    folder, stages, request, tiny_llava, ranked, tmp_path, monkeypatch
):
    whole = request.getfixturevalue(folder)
    settings = TrainSettings(**FAST, lora_rank=4 if folder == "lora_run" else 0)
    run_stage = run_stage_module._train
    started = []

    def run_and_die(*arguments):
        started.append(arguments)
        run_stage(*arguments)
        if len(started) == stages:
            raise Killed

    monkeypatch.setattr(run_stage_module, "_train", run_and_die)
    with pytest.raises(Killed):
        train(ranked, tiny_llava, tmp_path / "run", settings)
    train(ranked, tiny_llava, tmp_path / "run", settings)
    assert len(started) == 3, "no stage is trained twice"
    assert lasting(tmp_path / "run") == lasting(whole)
    assert_same_weights(tmp_path / "run", whole)


def test_killed_run_is_neither_continued_nor_removed_by_other_settings(tiny_llava, ranked, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run_stage_module, "_train", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**FAST, method="dpo"))
    before = sorted(path.name for path in (tmp_path / "run.partial").iterdir())
    with pytest.raises(
        MfpoError, match=r"run.partial belongs to a run with other settings: seed was 0 and is 1; repeat that command"
    ):
        train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**FAST, method="dpo", seed=1))
    assert sorted(path.name for path in (tmp_path / "run.partial").iterdir()) == before


def test_half_a_line_of_metrics_is_forgotten(tmp_path):
    log = StageLog(tmp_path / "metrics.jsonl", "hard", 10)
    log.write({"loss": 1.0}, 1)
    log.write({"loss": 2.0}, 2)
    with log.path.open("a") as file:
        file.write('{"stage": "ha')
    log.forget_after(1)
    assert log.path.read_text() == '{"stage": "hard", "step": 11, "loss": 1.0}\n'


@pytest.mark.parametrize("folder", ["run", "lora_run"])
def test_gradient_checkpointing_changes_nothing_but_memory(folder, request, tiny_llava, ranked, tmp_path):
    rank = 4 if folder == "lora_run" else 0
    train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**FAST, lora_rank=rank, gradient_checkpointing=True))
    whole = metrics_of(request.getfixturevalue(folder))
    for one, other in zip(metrics_of(tmp_path / "run"), whole, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_two_batches_of_four_are_one_of_eight(tiny_llava, preference_data, tmp_path):
    """The second step has 6 of the 14 records, 4 and 2 in a batch, each of which weighs the same."""
    for name, batch_size, accumulation in (("plain", 8, 1), ("accumulated", 4, 2)):
        settings = FAST | {"batch_size": batch_size, "gradient_accumulation": accumulation, "method": "dpo"}
        train(preference_data, tiny_llava, tmp_path / name, TrainSettings(**settings))
    for one, other in zip(metrics_of(tmp_path / "plain"), metrics_of(tmp_path / "accumulated"), strict=True):
        # Not the accuracies, which the last bit decides where policy and reference are still the same.
        for name in ("step", "loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-4)


def test_dpo_trains_in_one_stage_and_never_looks_at_rejected_images(tiny_llava, ranked, tmp_path):
    train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**FAST, method="dpo"))
    lines = metrics_of(tmp_path / "run")
    assert {line["stage"] for line in lines} == {"all"}
    assert not any("image" in name or name.removeprefix("loss/") == "margin" for name in lines[0])
    assert pq.read_table(tmp_path / "run" / "reference.parquet").column_names == ["id", "chosen", "rejected"]


def test_whole_model_loads_with_plain_transformers_and_kept_its_vision_tower(run, tiny_llava):
    before = AutoModelForImageTextToText.from_pretrained(tiny_llava).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(run / "model").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("vision_tower" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)
    assert any("language_model" in name for name in changed)
    AutoProcessor.from_pretrained(run / "model")


def test_vision_tower_is_trained_when_asked(tiny_llava, preference_data, tmp_path):
    settings = TrainSettings(**FAST, curriculum=False, train_vision_tower=True)
    train(preference_data, tiny_llava, tmp_path / "run", settings)
    before = load_model(tiny_llava).state_dict()
    after = load_model(tmp_path / "run" / "model").state_dict()
    assert any("vision_tower" in name and not torch.equal(before[name], after[name]) for name in before)


def test_adapter_loads_with_plain_peft_and_merges_to_the_same(lora_run, tiny_llava, ranked):
    base = AutoModelForImageTextToText.from_pretrained(tiny_llava, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, lora_run / "model").eval()
    merged = load_model(lora_run / "model")
    adapted = {name for name, _ in plain.named_parameters() if "lora_" in name}
    assert adapted
    assert all("language_model" in name for name in adapted)
    pairs = Pairs(read_dataset(ranked), load_processor(lora_run / "model"), rejected_images=True, max_length=999)
    batch = pairs.collate([pairs[0], pairs[1]])
    batch.pop("rows")
    with torch.no_grad():
        untrained = sequence_logps(load_model(tiny_llava), batch)
        torch.testing.assert_close(sequence_logps(merged, batch), sequence_logps(plain, batch), rtol=1e-4, atol=1e-4)
    assert (sequence_logps(merged, batch) - untrained).abs().max() > 1e-2


def test_training_from_an_adapter_trains_the_merged_weights(lora_run, ranked, tmp_path):
    merged = load_model(lora_run / "model")
    merged.save_pretrained(tmp_path / "merged")
    load_processor(lora_run / "model").save_pretrained(tmp_path / "merged")
    for name, model in (("adapter", lora_run / "model"), ("whole", tmp_path / "merged")):
        train(ranked, model, tmp_path / name, TrainSettings(**FAST, method="dpo"))
    assert lasting(tmp_path / "adapter") == lasting(tmp_path / "whole")
    assert_same_weights(tmp_path / "adapter", tmp_path / "whole")
    trained = load_model(tmp_path / "adapter" / "model").state_dict()
    assert any(not torch.equal(weight, trained[name]) for name, weight in merged.state_dict().items())


def test_a_stage_of_one_step_trains(tiny_llava, preference_data, tmp_path):
    """The Trainer rounds a warm-up up to a step, whose rate is 0."""
    settings = TrainSettings(method="dpo", epochs=1, batch_size=64, learning_rate=1e-3)
    train(preference_data, tiny_llava, tmp_path / "run", settings)
    before, after = load_model(tiny_llava).state_dict(), load_model(tmp_path / "run" / "model").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_bfloat16_model_is_trained_in_float32_and_saved_as_its_source(tiny_llava, ranked, tmp_path):
    load_model(tiny_llava, dtype=torch.bfloat16).save_pretrained(tmp_path / "bf16")
    load_processor(tiny_llava).save_pretrained(tmp_path / "bf16")
    train(ranked, tmp_path / "bf16", tmp_path / "run", TrainSettings(**FAST, keep_stages=True))
    easy = load_file(tmp_path / "run" / "stages" / "0-easy" / "model.safetensors")
    assert {value.dtype for value in easy.values()} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in easy.values())
    source, trained = (load_file(tmp_path / name / "model.safetensors") for name in ("bf16", "run/model"))
    assert {name: (value.shape, value.dtype) for name, value in trained.items()} == {
        name: (value.shape, torch.bfloat16) for name, value in source.items()
    }
    source, trained = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("bf16", "run/model"))
    assert trained == source
    assert {path.name for path in (tmp_path / "run" / "model").iterdir()} >= {"README.md", "processor_config.json"}


def test_batches_and_precision_are_those_of_the_settings(monkeypatch, tmp_path):
    """Not as many records more as there are GPUs, and not what the file given to `accelerate launch` says."""

    def four_gpus(arguments):
        arguments._n_gpu = 4
        return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(four_gpus))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    arguments = run_stage_module._arguments(TrainSettings(batch_size=2).resolved(), tmp_path, steps=1)
    assert arguments.train_batch_size == 2
    assert arguments.mixed_precision == "no"


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_one_policy_is_in_memory_at_a_time(lora_rank, tiny_llava, ranked, tmp_path, monkeypatch):
    open_policy, opened = run_stage_module.open_policy, []

    def watch(*args, **kwargs):
        assert [policy() for policy in opened] == [None] * len(opened)
        policy = open_policy(*args, **kwargs)
        opened.append(weakref.ref(policy))
        return policy

    monkeypatch.setattr(run_stage_module, "open_policy", watch)
    train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**FAST, lora_rank=lora_rank))
    assert len(opened) == 3


def test_adapter_names_a_base_from_the_hub_as_other_machines_find_it(tiny_llava, preference_data, tmp_path):
    model = tmp_path / "hub" / "models--acme--tiny" / "snapshots" / "abc123"
    shutil.copytree(tiny_llava, model)
    train(preference_data, model, tmp_path / "run", TrainSettings(**FAST, method="dpo", lora_rank=2))
    config = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("acme/tiny", "abc123")


@pytest.fixture
def loss_of(open_trainer):
    """The loss that the trainer gives for records 3 and 5 with a reference of our own."""

    def loss(data, settings: TrainSettings, reference: torch.Tensor) -> torch.Tensor:
        trainer = open_trainer(data, settings, reference)
        with torch.no_grad():
            batch = trainer.collate([trainer.train_dataset[0], trainer.train_dataset[1]])
            return trainer.compute_loss(trainer.model, batch, num_items_in_batch=2)

    return loss


def test_loss_is_the_formula_of_the_paper(preference_data, run, loss_of):
    columns = pq.read_table(run / "reference.parquet").to_pylist()
    torch.manual_seed(0)
    ratios = torch.randn(14, 3)
    logps = torch.tensor([[row["chosen"], row["rejected"], row["rejected_image"]] for row in columns])
    settings = TrainSettings(beta=0.5, eta=0.2, text_weight=1.5, image_weight=0.5, margin_weight=2.0)
    loss = loss_of(preference_data, settings, logps - ratios)
    expected = []
    for chosen, rejected, image in ratios[[3, 5]].tolist():
        terms = [0.5 * (chosen - rejected), 0.5 * (chosen - image), 0.5 * chosen - 0.2]
        expected.append(sum(w * math.log1p(math.exp(-x)) for w, x in zip((1.5, 0.5, 2.0), terms, strict=True)))
    assert loss.item() == pytest.approx(sum(expected) / 2, abs=1e-4)


def test_loss_that_is_not_finite_names_the_records(preference_data, loss_of):
    reference = torch.zeros(14, 2)
    reference[5, 1] = torch.nan
    with pytest.raises(MfpoError, match=r"loss is no longer finite at record 'r05', step 0; lower"):
        loss_of(preference_data, TrainSettings(method="dpo"), reference)


def refused(data: Path, model: Path, tmp_path: Path, **settings) -> str:
    with pytest.raises(MfpoError) as error:
        train(data, model, tmp_path / "refused", TrainSettings(**settings))
    assert "\n" not in str(error.value)
    return str(error.value)


def without(column: str, data: Path, folder: Path) -> Path:
    folder.mkdir()
    for shard in data.glob("*.parquet"):
        pq.write_table(pq.read_table(shard).drop_columns([column]), folder / shard.name)
    return folder


def test_data_without_rejected_images_is_refused_unless_the_method_needs_none(tiny_llava, ranked, tmp_path):
    data = without("rejected_images", ranked, tmp_path / "data")
    assert "rejected_images is missing; run `mfpo build`" in refused(data, tiny_llava, tmp_path)
    train(data, tiny_llava, tmp_path / "run", TrainSettings(**FAST, method="dpo"))


def test_curriculum_without_levels_is_refused(tiny_llava, preference_data, tmp_path):
    assert "level is missing; run `mfpo rank`" in refused(preference_data, tiny_llava, tmp_path)


def test_mdpo_on_noised_regions_is_refused(tiny_llava, preference_data, tmp_path):
    message = refused(preference_data, tiny_llava, tmp_path, method="mdpo")
    assert "needs rejected images of kind crop, but these are region" in message


def test_mdpo_on_data_without_a_corruption_is_refused(tiny_llava, preference_data, tmp_path):
    data = without("corruption", preference_data, tmp_path / "data")
    assert "column corruption is missing" in refused(data, tiny_llava, tmp_path, method="mdpo")


def test_metrics_balance_the_modalities_and_count_tokens(run, tiny_llava, ranked):
    pairs = Pairs(read_dataset(ranked), load_processor(tiny_llava), rejected_images=True, max_length=999)
    rows = [row for row, level in enumerate(column(read_dataset(ranked), "level")) if level == "easy"]
    lengths = [(len(prompt.prompt_ids), [len(a) for a in prompt.answers]) for r in rows for prompt in pairs[r].prompts]
    apart = sum(prompt + answer for prompt, answers in lengths for answer in answers)
    together = sum(prompt + sum(answers) for prompt, answers in lengths)
    lines = metrics_of(run)
    weighted = 4 * lines[0]["tokens/saved"] + lines[1]["tokens/saved"]  # an epoch: records of 4 and 1 in a batch
    assert lines[0]["tokens/saved"] == pytest.approx(1 - together / apart, abs=0.05)
    assert 0.1 < weighted / 5 < 0.5
    assert all(line["tokens/per_second"] > 0 for line in lines)
    assert "rewards/balance" not in lines[0], "policy and reference are one, so that there are no margins yet"
    for line in lines[2:]:
        assert line["rewards/balance"] == pytest.approx(line["rewards/image_margins"] / line["rewards/margins"])


def test_window_means_by_hand():
    sums = {"rewards/margins": 2.0, "rewards/image_margins": 1.0, "records": 4, "tokens": 60, "tokens_unshared": 80}
    means = window_means(sums, seconds=2.0)
    expected = {"rewards/margins": 0.5, "rewards/image_margins": 0.25, "rewards/balance": 0.5}
    assert means == expected | {"tokens/per_second": 30.0, "tokens/saved": 0.25}
    assert "rewards/balance" not in window_means(sums | {"rewards/margins": 1e-6}, seconds=2.0)


def test_tokens_are_counted_without_padding_and_once_a_prompt():
    """Prompts of 3 and 2 tokens; the first has answers of 1 and 2, the second one of 1; a row is padded."""
    layout = {"documents": torch.tensor([[0] * 6, [1] * 3 + [-1] * 3])}
    layout["answer_numbers"] = torch.tensor([[0, 0, 0, 1, 2, 2], [0, 0, 1, 0, 0, 0]])
    assert {name: int(count) for name, count in count_tokens(layout).items()} == {"tokens": 9, "tokens_unshared": 12}


def watch_stages(monkeypatch, tmp_path) -> list[dict]:
    """What each stage starts from and a copy of what it leaves."""
    train_stage, seen = run_stage_module._train, []

    def watch(policy, run, rows, reference, end, *rest):
        train_stage(policy, run, rows, reference, end, *rest)
        seen.append({"rows": rows, "reference": reference, "end": tmp_path / end.name})
        shutil.copytree(end, tmp_path / end.name)

    monkeypatch.setattr(run_stage_module, "_train", watch)
    return seen


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_reset_reference_starts_each_stage_from_the_policy(lora_rank, tiny_llava, ranked, tmp_path, monkeypatch):
    seen = watch_stages(monkeypatch, tmp_path)
    settings = TrainSettings(**FAST, reset_reference=True, lora_rank=lora_rank)
    train(ranked, tiny_llava, tmp_path / "run", settings)
    lines = metrics_of(tmp_path / "run")
    for stage in ("easy", "medium", "hard"):
        first = next(line for line in lines if line["stage"] == stage)
        assert first["loss"] == pytest.approx(3 * math.log(2), abs=1e-4)
        assert first["rewards/image_margins"] == pytest.approx(0, abs=1e-4)
    policy = load_model(seen[0]["end"])
    pairs = Pairs(read_dataset(ranked), load_processor(tiny_llava), rejected_images=True, max_length=999)
    row = seen[1]["rows"][0]
    batch = pairs.collate([pairs[row]])
    batch.pop("rows")
    with torch.no_grad():
        expected = sequence_logps(policy, batch)
    torch.testing.assert_close(seen[1]["reference"][row], expected, rtol=1e-4, atol=1e-3)
    others = [number for number in range(14) if number not in seen[1]["rows"]]
    assert seen[1]["reference"][others].isnan().all()


def test_rerank_cuts_what_is_left_by_the_entropies_of_the_policy(tiny_llava, ranked, tmp_path, monkeypatch):
    seen = watch_stages(monkeypatch, tmp_path)
    train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**FAST, rerank=True))
    easy = [row for row, level in enumerate(column(read_dataset(ranked), "level")) if level == "easy"]
    assert seen[0]["rows"] == easy
    assert sorted(row for stage in seen for row in stage["rows"]) == list(range(14))
    pairs = Pairs(read_dataset(ranked), load_processor(tiny_llava), rejected_images=True, max_length=999)
    policy = load_model(seen[0]["end"])
    entropies = {}
    for row in set(range(14)) - set(easy):
        encoded = pairs[row].prompts[0].split()[0]
        with torch.no_grad():
            logps = token_logps(policy, collate([encoded], 0))[0, : len(encoded.answers[0])]
        entropies[row] = -sum(float(logp) * math.exp(float(logp)) for logp in logps)
    order = sorted(entropies, key=lambda row: (entropies[row], pairs.ids[row]))
    assert set(seen[1]["rows"]) == set(order[:5])
    assert set(seen[2]["rows"]) == set(order[5:])


def test_reference_and_levels_stay_without_these_settings(tiny_llava, ranked, tmp_path, monkeypatch):
    seen = watch_stages(monkeypatch, tmp_path)
    train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**FAST))
    levels = column(read_dataset(ranked), "level")
    for stage, name in zip(seen, ("easy", "medium", "hard"), strict=True):
        assert stage["rows"] == [row for row, level in enumerate(levels) if level == name]
        assert torch.equal(stage["reference"], seen[0]["reference"])


def test_gradient_that_is_not_finite_ends_the_run_before_the_weights_are_spoilt(
    tiny_llava, ranked, tmp_path, monkeypatch
):
    """The loss is finite, its gradient is not: a step would make all weights NaN and the next checkpoint with them."""
    compute_loss, seen = PreferenceTrainer.compute_loss, []

    def compute(trainer, model, inputs, *args, **kwargs):
        seen.append([trainer.pairs.ids[row] for row in inputs["rows"].tolist()])
        loss = compute_loss(trainer, model, inputs, *args, **kwargs)
        return (
            loss + (0 * next(p for p in model.parameters() if p.requires_grad).sum()).sqrt() if len(seen) == 3 else loss
        )

    monkeypatch.setattr(PreferenceTrainer, "compute_loss", compute)
    with pytest.raises(MfpoError, match=r"the gradient is no longer finite at record .*, step 2; lower") as error:
        train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**FAST))
    assert all(repr(id) in str(error.value) for id in seen[2])
    kept = Path(re.search(r"kept in (.*)$", str(error.value))[1]) / "checkpoint-2"
    weights = load_model(kept).state_dict()
    assert all(value.isfinite().all() for value in weights.values())


def test_tensorboard_shows_the_metrics(tiny_llava, ranked, tmp_path):
    train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**FAST, curriculum=False, report_to="tensorboard"))
    (file,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    shown: dict[int, dict[str, float]] = {}
    for event in events_of(file):
        for value in event.summary.value:
            shown.setdefault(event.step, {})[value.tag] = value.simple_value
    lines = metrics_of(tmp_path / "run")
    assert len(lines) == 8
    for line in lines:
        expected = {f"train/{name}": value for name, value in line.items() if name not in ("stage", "step")}
        found = {name: value for name, value in shown[line["step"]].items() if name in expected}
        assert found == pytest.approx(expected, rel=1e-6)


def events_of(file: Path) -> list[Event]:
    """The records of a TFRecord file: a length, a checksum, the record, a checksum."""
    data, events = file.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_merged_model_is_stored_as_its_base(tiny_llava, preference_data, tmp_path, monkeypatch):
    load_model(tiny_llava, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    load_processor(tiny_llava).save_pretrained(tmp_path / "base")
    settings = TrainSettings(**FAST, method="dpo", lora_rank=4)
    train(preference_data, tmp_path / "base", tmp_path / "run", settings)
    monkeypatch.setattr("sys.argv", ["mfpo", "merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged")])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    base, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    plain = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(tmp_path / "base", dtype=torch.float32), tmp_path / "run" / "model"
    )
    rounded = plain.merge_and_unload().to(torch.bfloat16)
    rounded.save_pretrained(tmp_path / "plain")
    assert all(
        torch.equal(value, merged[name]) for name, value in load_file(tmp_path / "plain/model.safetensors").items()
    )
    assert any(not torch.equal(value, merged[name]) for name, value in base.items())
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("base", "merged")]
    assert configs[0] == configs[1]


def test_card_says_what_made_the_model(run, lora_run, tiny_llava, ranked):
    for folder, library in ((run, "transformers"), (lora_run, "peft")):
        head, text = (folder / "model" / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
        assert yaml.safe_load(head)["library_name"] == library
        assert "base_model" not in yaml.safe_load(head), "a folder is no name on the hub"
        assert ranked.name in text
        assert str(tiny_llava.parent) not in text, "no path of this machine"
        last = metrics_of(folder)[-1]
        assert f"| hard | 10 | {last['loss']:.4f} | {last['rewards/margins']:.4f} |" in text
        assert "| learning_rate | 0.001 |" in text
        assert f"| mfpo | {version('mfpo')} |" in text
    assert hub_name(tiny_llava) is None


def test_trained_model_has_the_tensors_and_the_config_of_its_source(run, tiny_llava, tmp_path):
    tensors = []
    for folder in (tiny_llava, run / "model"):
        with safe_open(folder / "model.safetensors", "pt") as file:
            tensors.append({name: file.get_slice(name).get_shape() for name in file.keys()})  # noqa: SIM118
    assert tensors[0] == tensors[1]
    AutoModelForImageTextToText.from_pretrained(tiny_llava, dtype=torch.float32).save_pretrained(tmp_path / "plain")
    for name in ("config.json", "generation_config.json"):
        assert (run / "model" / name).read_text() == (tmp_path / "plain" / name).read_text()
    assert not [path.name for path in (run / "model").iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


def with_processor(tiny_llava, folder: Path, change) -> Path:
    """The model with a processor that was changed."""
    load_model(tiny_llava).save_pretrained(folder)
    processor = load_processor(tiny_llava)
    change(processor)
    processor.save_pretrained(folder)
    return folder


def _more_image_tokens(processor):
    processor.patch_size = 4


def _larger_images(processor):
    processor.image_processor.crop_size = {"height": 64, "width": 64}
    processor.image_processor.size = {"shortest_edge": 64}


def _longer_vocabulary(processor):
    processor.tokenizer.add_tokens(["USER"])


@pytest.mark.parametrize("change", [_more_image_tokens, _larger_images, _longer_vocabulary])
def test_processor_of_another_model_is_refused(change, tiny_llava, ranked, tmp_path):
    model = with_processor(tiny_llava, tmp_path / "model", change)
    message = refused(ranked, model, tmp_path)
    assert "the model cannot read what the processor beside it makes of record 'r00' (" in message


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl"], indirect=True)
def test_processor_of_another_family_is_refused(family, tiny_llava, preference_data, tmp_path):
    """As many kinds of error as there are families."""
    family.model.save_pretrained(tmp_path / "model")
    load_processor(tiny_llava).save_pretrained(tmp_path / "model")
    message = refused(preference_data, tmp_path / "model", tmp_path, method="dpo")
    assert "the model cannot read what the processor beside it makes of record 'r00' (" in message


def test_processor_with_another_image_token_is_refused(tiny_llava, ranked, tmp_path):
    model = with_processor(tiny_llava, tmp_path / "model", lambda processor: None)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"image_token_index": 1}))
    assert "the model cannot read what the processor beside it makes" in refused(ranked, model, tmp_path)


def with_column(name: str, values: list, data: Path, folder: Path) -> Path:
    folder.mkdir()
    for shard, start in zip(sorted(data.glob("*.parquet")), (0, 8), strict=True):
        table = pq.read_table(shard)
        column = pa.array(values[start : start + len(table)])
        pq.write_table(table.set_column(table.column_names.index(name), name, column), folder / shard.name)
    return folder


def test_level_without_records_is_refused(tiny_llava, ranked, tmp_path):
    data = with_column("level", ["easy"] * 7 + ["hard"] * 7, ranked, tmp_path / "data")
    assert "level medium has no records" in refused(data, tiny_llava, tmp_path)
    data = with_column("level", ["level-1"] * 7 + ["level-4"] * 7, ranked, tmp_path / "four")
    assert "level level-2, level-3 has no records" in refused(data, tiny_llava, tmp_path)


def test_equal_entropies_are_refused_for_a_curriculum_only(tiny_llava, ranked, tmp_path):
    data = with_column("entropy", [1.5] * 14, ranked, tmp_path / "data")
    assert "all records have the same entropy" in refused(data, tiny_llava, tmp_path)
    train(data, tiny_llava, tmp_path / "run", TrainSettings(method="dpo", epochs=1, batch_size=16))


def test_4_bit_weights_need_a_gpu(tiny_llava, ranked, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "device", lambda: torch.device("cpu"))
    assert "quantize_4bit needs a GPU" in refused(ranked, tiny_llava, tmp_path, lora_rank=2, quantize_4bit=True)
    monkeypatch.setattr(trainer_module, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(trainer_module, "find_spec", lambda name: None)
    assert "run `pip install bitsandbytes`" in refused(ranked, tiny_llava, tmp_path, lora_rank=2, quantize_4bit=True)


def test_tracker_that_is_not_installed_is_refused(tiny_llava, ranked, tmp_path):
    assert "report_to is 'wandbb', but no such tracker is installed" in refused(
        ranked, tiny_llava, tmp_path, report_to="wandbb"
    )


def test_folder_without_model_is_refused(tiny_llava, ranked, tmp_path):
    load_processor(tiny_llava).save_pretrained(tmp_path / "none")
    assert f"{tmp_path / 'none'}: no model there" in refused(ranked, tmp_path / "none", tmp_path)
    assert f"{tmp_path / 'absent'}: no model there" in refused(ranked, tmp_path / "absent", tmp_path)


def test_model_without_processor_is_refused(tiny_llava, ranked, tmp_path):
    load_model(tiny_llava).save_pretrained(tmp_path / "bare")
    assert "no processor there" in refused(ranked, tmp_path / "bare", tmp_path)


def test_model_that_sees_no_images_is_refused(tiny_llava, ranked, tmp_path):
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "text")
    load_processor(tiny_llava).save_pretrained(tmp_path / "text")
    assert "a 'llama' model takes no images" in refused(ranked, tmp_path / "text", tmp_path)


def test_pickled_weights_are_refused(tiny_llava, ranked, tmp_path):
    model = load_model(tiny_llava)
    (tmp_path / "pickled").mkdir()
    model.config.save_pretrained(tmp_path / "pickled")
    load_processor(tiny_llava).save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    assert "no *.safetensors there" in refused(ranked, tmp_path / "pickled", tmp_path)


def test_lora_targets_that_match_nothing_are_refused(tiny_llava, ranked, tmp_path):
    message = refused(ranked, tiny_llava, tmp_path, lora_rank=2, lora_targets=r".*\.qproj")
    assert "matches none of the linear layers, such as" in message


def test_adapter_on_an_adapter_is_refused(lora_run, ranked, tmp_path):
    assert "merge it first" in refused(ranked, lora_run / "model", tmp_path, lora_rank=2)


def test_existing_run_is_not_overwritten(run, tiny_llava, ranked):
    with pytest.raises(MfpoError, match="exists already"):
        train(ranked, tiny_llava, run, TrainSettings(**FAST))


def test_image_that_cannot_be_read_names_the_record(tiny_llava, preference_data, tmp_path):
    rows = read_dataset(preference_data).with_format("arrow")[:]["images"].to_pylist()
    rows[3] = [{"bytes": b"junk", "path": None}]
    (tmp_path / "data").mkdir()
    for shard, start in zip(sorted(preference_data.glob("*.parquet")), (0, 8), strict=True):
        table = pq.read_table(shard)
        images = pa.array(rows[start : start + len(table)], table.schema.field("images").type)
        place = table.column_names.index("images")
        pq.write_table(table.set_column(place, table.schema.field("images"), images), tmp_path / "data" / shard.name)
    message = refused(tmp_path / "data", tiny_llava, tmp_path, method="dpo")
    assert message.startswith("record 'r03': one of its images cannot be read (")


def test_sharded_adapters_are_refused(tiny_llava, ranked, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "train adapters with ddp.yaml" in refused(ranked, tiny_llava, tmp_path, lora_rank=2)


def test_prompt_too_long_names_the_record(tiny_llava, ranked, tmp_path):
    with pytest.raises(RecordError, match=r"record 'r00': the prompt with its images has \d+ tokens"):
        train(ranked, tiny_llava, tmp_path / "run", TrainSettings(max_length=20))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "mpfo"}, "no method is named 'mpfo'; there are ddpo, dpo, eos"),
        ({"method": "dpo", "eta": 0.5}, "method dpo has no eta"),
        ({"method": "dpo", "image_weight": 0.5}, "image_weight is 0.5, but method dpo has no image term"),
        ({"method": "dpo", "margin_weight": 2.0}, "margin_weight is 2.0, but method dpo has no margin term"),
        ({"text_weight": 0.0, "image_weight": 0.0, "margin_weight": 0.0}, "are all 0"),
        ({"method": "dpo", "rerank": True}, "rerank is for stages from easy to hard; set curriculum=true"),
        ({"curriculum": False, "reset_reference": True}, "reset_reference is for stages"),
        ({"epochs": 0}, "epochs is 0, but must be at least 1"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"warmup_ratio": 1.0}, "warmup_ratio is 1.0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"beta": math.nan}, "beta is nan"),
        ({"eta": math.nan}, "eta is nan"),
        ({"image_weight": -1.0}, "image_weight is -1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"quantize_4bit": True}, "quantize_4bit is for adapters, but lora_rank is 0"),
        ({"lora_targets": ".*"}, "lora_rank is 0"),
        ({"logging_steps": 10, "save_steps": 25}, "save_steps is 25, but must be a multiple of logging_steps"),
        ({"lora_rank": 8, "train_vision_tower": True}, "name them in lora_targets"),
        ({"batch_size": 0, "beta": -1.0}, "batch_size is 0, but must be at least 1; beta is -1.0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(SettingError, match=message):
        TrainSettings(**settings)


def test_null_settings_are_resolved_by_method_and_kind():
    assert TrainSettings().resolved().learning_rate == 5e-7
    assert TrainSettings(lora_rank=8).resolved().learning_rate == 5e-6
    assert TrainSettings(lora_rank=8).resolved().lora_alpha == 16
    assert TrainSettings(method="dpo").resolved().curriculum is False
