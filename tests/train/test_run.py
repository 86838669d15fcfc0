"""Training runs on a random LLaVA: what a run folder holds, what a model is saved as, stages from easy to hard."""

import copy
import json
import math
import shutil
import weakref
from importlib.metadata import version
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event
from transformers import AutoModelForImageTextToText, AutoProcessor

import mfpo.train.run
from fixtures.runs import BRIEF, PLAIN, STAGED, Killed, lasting, metrics_of
from mfpo.cli import main
from mfpo.dataset import column, read_dataset
from mfpo.errors import MfpoError
from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.sequences import collate, sequence_logps, token_logps
from mfpo.models import load_model
from mfpo.processors import load_processor
from mfpo.settings import read_settings
from mfpo.train import stage as stage_module
from mfpo.train.card import hub_name
from mfpo.train.plan import plan_stages
from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings
from mfpo.train.trainer import PreferenceTrainer


def test_before_the_first_step_policy_and_reference_are_one(staged_run, lora_run):
    first = metrics_of(staged_run)[0]
    assert first["loss"] == pytest.approx(3 * math.log(2), abs=1e-5)
    for name in ("text", "image", "margin"):
        assert first[f"loss/{name}"] == pytest.approx(math.log(2), abs=1e-5)
    for name in ("chosen", "rejected", "image_rejected", "margins", "image_margins"):
        assert first[f"rewards/{name}"] == pytest.approx(0, abs=1e-5)
    assert metrics_of(lora_run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics_of(lora_run)[-1]["loss"] != pytest.approx(math.log(2), abs=1e-3)


def test_run_folder_holds_what_it_should_and_no_checkpoints(staged_run):
    names = {path.name for path in staged_run.iterdir()}
    assert names == {"config.yaml", "made_by.json", "metrics.jsonl", "model", "reference.parquet", "summary.json"}
    config = yaml.safe_load((staged_run / "config.yaml").read_text())
    assert config["method"] == "mfpo"
    assert config["curriculum"] is True
    assert json.loads((staged_run / "summary.json").read_text()) == {"records": 14, "cut_answers": 0}


def test_stages_go_from_easy_to_hard_with_steps_counted_over_all(staged_run):
    lines = metrics_of(staged_run)
    assert [line["stage"] for line in lines] == ["easy"] * 4 + ["medium"] * 4 + ["hard"] * 2
    assert [line["step"] for line in lines] == list(range(1, 11))


def test_training_raises_the_margins(staged_run):
    lines = metrics_of(staged_run)
    assert lines[-1]["rewards/margins"] > lines[0]["rewards/margins"] + 0.05
    assert lines[-1]["rewards/accuracies"] == 1.0
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.05


def test_reference_is_the_untrained_model(staged_run, tiny_llava, ranked):
    table = pq.read_table(staged_run / "reference.parquet").to_pylist()
    pairs = Pairs(read_dataset(ranked), load_processor(tiny_llava), cells=TEXT_AND_IMAGE, max_length=999)
    model = load_model(tiny_llava)
    for row in (0, 7, 13):
        batch = pairs.collate([pairs[row]])
        batch.pop("rows")
        with torch.no_grad():
            chosen, rejected, image = sequence_logps(model, batch).tolist()
        expected = {"id": pairs.ids[row], "chosen": chosen, "rejected": rejected, "rejected_image": image}
        assert table[row] == pytest.approx(expected, abs=1e-4)


def test_dpo_trains_in_one_stage_and_never_looks_at_rejected_images(plain_run):
    lines = metrics_of(plain_run)
    assert {line["stage"] for line in lines} == {"all"}
    assert not any("image" in name or name.removeprefix("loss/") == "margin" for name in lines[0])
    assert pq.read_table(plain_run / "reference.parquet").column_names == ["id", "chosen", "rejected"]


def test_whole_model_loads_with_plain_transformers_and_kept_its_vision_tower(staged_run, tiny_llava):
    before = AutoModelForImageTextToText.from_pretrained(tiny_llava).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(staged_run / "model").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("vision_tower" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)
    assert any("language_model" in name for name in changed)
    AutoProcessor.from_pretrained(staged_run / "model")


def test_adapter_loads_with_plain_peft_and_merges_to_the_same(lora_run, tiny_llava, ranked):
    base = AutoModelForImageTextToText.from_pretrained(tiny_llava, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, lora_run / "model").eval()
    merged = load_model(lora_run / "model")
    adapted = {name for name, _ in plain.named_parameters() if "lora_" in name}
    assert adapted
    assert all("language_model" in name for name in adapted)
    pairs = Pairs(read_dataset(ranked), load_processor(lora_run / "model"), cells=TEXT_AND_IMAGE, max_length=999)
    batch = pairs.collate([pairs[0], pairs[1]])
    batch.pop("rows")
    with torch.no_grad():
        untrained = sequence_logps(load_model(tiny_llava), batch)
        torch.testing.assert_close(sequence_logps(merged, batch), sequence_logps(plain, batch), rtol=1e-4, atol=1e-4)
    assert (sequence_logps(merged, batch) - untrained).abs().max() > 1e-2


def test_bfloat16_model_is_trained_in_float32_and_saved_as_its_source(tiny_llava, ranked, tmp_path):
    load_model(tiny_llava, dtype=torch.bfloat16).save_pretrained(tmp_path / "bf16")
    load_processor(tiny_llava).save_pretrained(tmp_path / "bf16")
    train(ranked, tmp_path / "bf16", tmp_path / "run", TrainSettings(**BRIEF, keep_stages=True))
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


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_one_policy_is_in_memory_at_a_time(lora_rank, tiny_llava, ranked, tmp_path, monkeypatch):
    open_policy, opened = stage_module.open_policy, []

    def watch(*args, **kwargs):
        assert [policy() for policy in opened] == [None] * len(opened)
        policy = open_policy(*args, **kwargs)
        opened.append(weakref.ref(policy))
        return policy

    monkeypatch.setattr(stage_module, "open_policy", watch)
    train(ranked, tiny_llava, tmp_path / "run", TrainSettings(**BRIEF, lora_rank=lora_rank))
    assert len(opened) == 3


def test_adapter_names_a_base_from_the_hub_as_other_machines_find_it(tiny_llava, preference_data, tmp_path):
    model = tmp_path / "hub" / "models--acme--tiny" / "snapshots" / "abc123"
    shutil.copytree(tiny_llava, model)
    train(preference_data, model, tmp_path / "run", TrainSettings(**BRIEF, method="dpo", lora_rank=2))
    config = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("acme/tiny", "abc123")


def test_metrics_balance_the_modalities_and_count_tokens(staged_run, tiny_llava, ranked):
    pairs = Pairs(read_dataset(ranked), load_processor(tiny_llava), cells=TEXT_AND_IMAGE, max_length=999)
    rows = [row for row, level in enumerate(column(read_dataset(ranked), "level")) if level == "easy"]
    lengths = [(len(prompt.prompt_ids), [len(a) for a in prompt.answers]) for r in rows for prompt in pairs[r].prompts]
    apart = sum(prompt + answer for prompt, answers in lengths for answer in answers)
    together = sum(prompt + sum(answers) for prompt, answers in lengths)
    lines = metrics_of(staged_run)
    weighted = 4 * lines[0]["tokens/saved"] + lines[1]["tokens/saved"]  # an epoch: records of 4 and 1 in a batch
    assert lines[0]["tokens/saved"] == pytest.approx(1 - together / apart, abs=0.05)
    assert 0.1 < weighted / 5 < 0.5
    assert all(line["tokens/per_second"] > 0 for line in lines)
    assert "rewards/balance" not in lines[0], "policy and reference are one, so that there are no margins yet"
    for line in lines[2:]:
        assert line["rewards/balance"] == pytest.approx(line["rewards/image_margins"] / line["rewards/margins"])


def test_tensorboard_shows_the_metrics(tiny_llava, preference_data, tmp_path):
    train(preference_data, tiny_llava, tmp_path / "run", TrainSettings(**PLAIN, report_to="tensorboard"))
    (file,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    shown: dict[int, dict[str, float]] = {}
    for event in events_of(file):
        for value in event.summary.value:
            shown.setdefault(event.step, {})[value.tag] = value.simple_value
    lines = metrics_of(tmp_path / "run")
    assert len(lines) == 4
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
    settings = TrainSettings(**BRIEF, method="dpo", lora_rank=4)
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
    assert base.keys() == merged.keys()
    assert any(not torch.equal(value, merged[name]) for name, value in base.items())
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("base", "merged")]
    assert configs[0] == configs[1]


def test_card_says_what_made_the_model(staged_run, lora_run, tiny_llava, ranked, preference_data):
    for folder, data, library in ((staged_run, ranked, "transformers"), (lora_run, preference_data, "peft")):
        head, text = (folder / "model" / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
        assert yaml.safe_load(head)["library_name"] == library
        assert "base_model" not in yaml.safe_load(head), "a folder is no name on the hub"
        assert data.name in text
        assert str(tiny_llava.parent) not in text, "no path of this machine"
        last = metrics_of(folder)[-1]
        start = f"| {last['stage']} | {last['step']} | {last['loss']:.4f} | {last['rewards/margins']:.4f} |"
        assert start in text
        assert "| learning_rate | 0.001 |" in text
        assert f"| mfpo | {version('mfpo')} |" in text
    assert hub_name(tiny_llava) is None


def test_trained_model_has_the_tensors_and_the_config_of_its_source(staged_run, tiny_llava, tmp_path):
    tensors = []
    for folder in (tiny_llava, staged_run / "model"):
        with safe_open(folder / "model.safetensors", "pt") as file:
            tensors.append({name: file.get_slice(name).get_shape() for name in file.keys()})  # noqa: SIM118
    assert tensors[0] == tensors[1]
    AutoModelForImageTextToText.from_pretrained(tiny_llava, dtype=torch.float32).save_pretrained(tmp_path / "plain")
    for name in ("config.json", "generation_config.json"):
        assert (staged_run / "model" / name).read_text() == (tmp_path / "plain" / name).read_text()
    assert not [
        path.name for path in (staged_run / "model").iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")
    ]


def pairs_of(data: Path, model: Path) -> Pairs:
    return Pairs(read_dataset(data), load_processor(model), cells=TEXT_AND_IMAGE, max_length=999)


def test_reset_reference_and_rerank_go_by_the_policy_that_a_stage_starts_from(tiny_llava, ranked, tmp_path):
    """Levels of 4, 4 and 6 records, so that those cut anew have other steps."""
    settings = TrainSettings(**STAGED, reset_reference=True, rerank=True, keep_stages=True)
    levels = ["easy"] * 4 + ["medium"] * 4 + ["hard"] * 6
    dataset = read_dataset(ranked).remove_columns("level").add_column("level", levels)
    run = train(dataset, tiny_llava, tmp_path / "run", settings)
    assert [line["step"] for line in metrics_of(run)] == list(range(1, 11))
    pairs, policy = pairs_of(ranked, tiny_llava), load_model(run / "stages" / "0-easy")
    entropies = {}
    for row in range(4, 14):
        encoded = pairs[row].prompts[0].split()[0]
        with torch.no_grad():
            logps = token_logps(policy, collate([encoded], 0))[0, : len(encoded.answers[0])]
        entropies[row] = -sum(float(logp) * math.exp(float(logp)) for logp in logps)
    order = sorted(entropies, key=lambda row: (entropies[row], pairs.ids[row]))
    (_, medium), (_, hard) = json.loads((run / "stages" / "1.order.json").read_text())
    assert (set(medium), set(hard)) == (set(order[:5]), set(order[5:]))

    for stage in ("easy", "medium", "hard"):
        first = next(line for line in metrics_of(run) if line["stage"] == stage)
        assert first["loss"] == pytest.approx(3 * math.log(2), abs=1e-4)
        assert first["rewards/image_margins"] == pytest.approx(0, abs=1e-4)
    table = pq.read_table(run / "stages" / "1.reference.parquet").to_pylist()
    assert [record["id"] for record in table] == [pairs.ids[row] for row in sorted(medium)]
    batch = pairs.collate([pairs[min(medium)]])
    batch.pop("rows")
    with torch.no_grad():
        expected = sequence_logps(policy, batch).tolist()
    found = [table[0][name] for name in ("chosen", "rejected", "rejected_image")]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_reference_and_levels_stay_without_these_settings(staged_run, ranked):
    dataset = read_dataset(ranked)
    plan = plan_stages(dataset, TrainSettings().resolved(), "data")
    assert plan == [
        (name, [row for row, level in enumerate(dataset["level"]) if level == name])
        for name in ("easy", "medium", "hard")
    ]
    later = [next(line for line in metrics_of(staged_run) if line["stage"] == stage) for stage in ("medium", "hard")]
    assert all(abs(line["rewards/margins"]) > 1e-2 for line in later), "against the untrained model"


# In memory.


def test_dataset_and_model_in_memory_train_as_their_folders_do(plain_run, tiny_llava, preference_data, tmp_path):
    model = load_model(tiny_llava)
    before = copy.deepcopy(model.state_dict())
    trained = mfpo.train.run.train(
        read_dataset(preference_data),
        model,
        tmp_path / "run",
        TrainSettings(**PLAIN),
        processor=load_processor(tiny_llava),
    )
    assert lasting(tmp_path / "run") == lasting(plain_run)
    weights, expected = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / "run", plain_run))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    loaded = load_model(tmp_path / "run" / "model").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in trained.state_dict().items())
    assert not (tmp_path / "run" / "base").exists()
    assert list((tmp_path / "run" / ".reference").glob("*.parquet"))


def test_killed_run_in_memory_goes_on_with_the_same_content_only(tiny_llava, preference_data, tmp_path, monkeypatch):
    def start(*, other_images: bool = False, other_weights: bool = False) -> Path:
        rows, model = read_dataset(preference_data), load_model(tiny_llava)
        if other_images:
            rows = rows.remove_columns("images").rename_column("rejected_images", "images")
        if other_weights:
            model.lm_head.weight.data[0] += 1
        settings = TrainSettings(**BRIEF, method="dpo", lora_rank=2)
        return train(rows, model, tmp_path / "run", settings, processor=load_processor(tiny_llava))

    def die(trainer, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(PreferenceTrainer, "train", die)
        with pytest.raises(Killed):
            start()
    with pytest.raises(MfpoError, match="model_files was"):
        start(other_weights=True)
    with pytest.raises(MfpoError, match="data_files was"):
        start(other_images=True)
    run = start()
    config = json.loads((run / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(run / "base")
    load_model(run / "model")


def with_row_5(rows, **columns):
    """The rows with other values in the sixth one."""
    return rows.map(lambda row, number: columns if number == 5 else {}, with_indices=True)


def test_whole_numbers_as_ids_are_texts(preference_data):
    rows = read_dataset(preference_data).remove_columns("id").add_column("id", list(range(14)))
    assert read_dataset(rows)[3]["id"] == "3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.remove_columns("chosen"), "column chosen is missing; run `mfpo build` first"),
        (lambda rows: rows.select([]), "holds no records"),
        (lambda rows: rows[:2], "the data is a dict; give a folder, or a datasets.Dataset"),
        (lambda rows: datasets.DatasetDict(train=rows), "the data is a DatasetDict"),
        (lambda rows: rows.map(lambda row, i: {"rejected": None if i == 5 else row["rejected"]}, with_indices=True),
         "row 5: column rejected is empty; fill it or leave the row out"),
        (lambda rows: with_row_5(rows, chosen=[]), "row 5: column chosen is empty"),
        (lambda rows: with_row_5(rows, images=[]), "row 5: column images is empty"),
        (lambda rows: with_row_5(rows, images=[None]), "row 5: column images holds an empty entry"),
        (lambda rows: with_row_5(rows, prompt=[{"role": "user", "content": None}]),
         "row 5: column prompt holds an empty entry"),
        (lambda rows: rows.map(lambda row: {"chosen": [{"role": "assistant", "content": [{"type": "text"}]}]}),
         "column chosen must hold lists of messages"),
        (lambda rows: rows.remove_columns("images").add_column("images", [["a.png"]] * 14),
         "column images must hold lists of images"),
        (lambda rows: rows.remove_columns("prompt").add_column("prompt", ["What?"] * 14),
         "column prompt must hold lists of messages"),
    ],
)  # fmt: skip
def test_dataset_that_is_not_one_is_refused(change, message, tiny_llava, preference_data, tmp_path):
    rows = read_dataset(preference_data).select_columns(["id", "images", "prompt", "chosen", "rejected"])
    with pytest.raises(MfpoError) as error:
        train(change(rows), tiny_llava, tmp_path / "run", TrainSettings(method="dpo"))
    assert message in str(error.value)


def test_model_in_memory_needs_its_processor_and_no_adapter(tiny_llava, preference_data, tmp_path):
    model = load_model(tiny_llava)
    with pytest.raises(MfpoError, match="a model in memory needs its processor"):
        train(preference_data, model, tmp_path / "run", TrainSettings(method="dpo"))
    with pytest.raises(MfpoError, match="the model is a str"):
        train(preference_data, str(tiny_llava), tmp_path / "run", TrainSettings(method="dpo"))
    # Its folder alone says which reference is a model's.
    with pytest.raises(MfpoError, match="a folder brings its processor"):
        train(
            preference_data,
            tiny_llava,
            tmp_path / "run",
            processor=load_processor(tiny_llava),
            settings=TrainSettings(),
        )
    (tmp_path / "run").mkdir()
    with pytest.raises(MfpoError, match="exists already"):
        train(preference_data, None, tmp_path / "run", TrainSettings())


def test_config_of_a_run_of_the_version_before_is_read(tmp_path):
    config = {"method": "dpo", "beta": 0.1, "eta": None, "lm_weight": None, "text_weight": 1.0, "image_weight": 1.0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"gamma": None, "epochs": 2}))
    assert read_settings(TrainSettings, tmp_path / "config.yaml", []) == TrainSettings(method="dpo", epochs=2)
    with pytest.raises(MfpoError, match=r"image_weight is 0\.5, but method dpo has no image_weight"):
        read_settings(TrainSettings, tmp_path / "config.yaml", ["image_weight=0.5"])
