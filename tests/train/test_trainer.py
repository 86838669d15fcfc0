"""The trainer: its loss, batches, windows and order, and as one opens it from a model, a processor and a dataset."""

import math
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import TrainingArguments

from fixtures.runs import PLAIN, metrics_of
from mfpo.dataset import read_dataset
from mfpo.errors import MfpoError, SettingError
from mfpo.models import load_model
from mfpo.processors import load_processor
from mfpo.train.arguments import training_arguments
from mfpo.train.metrics import count_tokens, window_means
from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings
from mfpo.train.trainer import PreferenceTrainer


def open_own(path: Path, data: Path, out: Path, settings: dict, **options) -> PreferenceTrainer:
    """A trainer as a notebook opens it."""
    made = TrainSettings(**settings)
    return PreferenceTrainer(
        options.pop("model", None) or load_model(path),
        made,
        options.pop("args", None) or training_arguments(made.resolved(), out, records=14),
        processing_class=load_processor(path),
        train_dataset=read_dataset(data),
        **options,
    )


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_trainer_of_ones_own_trains_as_a_run_does(lora_rank, request, tiny_llava, preference_data, tmp_path):
    run = request.getfixturevalue("lora_run" if lora_rank else "plain_run")
    trainer = open_own(tiny_llava, preference_data, tmp_path / "own", PLAIN | {"lora_rank": lora_rank})
    trainer.train()
    trainer.save_model()
    name = "adapter_model.safetensors" if lora_rank else "model.safetensors"
    found, expected = (load_file(folder / name) for folder in (tmp_path / "own", run / "model"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    curve = [line["loss"] for line in trainer.state.log_history if "rewards/margins" in line]
    assert curve == [line["loss"] for line in metrics_of(run)]
    load_processor(tmp_path / "own")
    load_model(tmp_path / "own")
    assert not (tmp_path / "own" / "training_args.bin").exists()


def test_trainer_of_ones_own_keeps_a_frozen_reference_for_methods_that_read_one(tiny_llava, preference_data, tmp_path):
    halva = {"method": "halva", "learning_rate": 1e-2, "epochs": 1, "batch_size": 7, "logging_steps": 1}
    trainer = open_own(tiny_llava, preference_data, tmp_path, halva)
    trainer.train()
    first, second = [line for line in trainer.state.log_history if "loss/kl" in line]
    assert first["loss/kl"] == pytest.approx(0, abs=1e-6)
    assert second["loss/kl"] > 1e-4
    assert all(
        torch.equal(value, weight)
        for value, weight in zip(
            trainer.frozen.state_dict().values(), load_model(tiny_llava).state_dict().values(), strict=True
        )
    )


class Batchnorm(nn.Module):
    """In place of a norm over (batch, positions, width), as the towers of FastVLM have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, states):
        return self.norm(states.mT).mT


@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        PLAIN | {"lora_rank": 4},
        PLAIN | {"method": "halva"},
        PLAIN | {"train_vision_tower": True},
        PLAIN | {"gradient_checkpointing": True},
    ],
)
def test_statistics_of_a_batch_change_neither_tower_nor_rewards(settings, tiny_llava, preference_data, tmp_path):
    model = load_model(tiny_llava)
    tower = model.get_encoder(modality="image")
    tower.pre_layrnorm = Batchnorm(tower.config.hidden_size)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    trainer = open_own(tiny_llava, preference_data, tmp_path, settings, model=model.eval())
    trainer.train()
    first = next(line for line in trainer.state.log_history if "rewards/margins" in line)
    assert [first["rewards/chosen"], first["rewards/rejected"]] == pytest.approx([0, 0], abs=1e-5)
    moved = {name for name, value in tower.state_dict().items() if not torch.equal(value, before[name])}
    if settings.get("train_vision_tower"):
        assert "pre_layrnorm.norm.weight" in moved
        assert not any("running" in name for name in moved)
    else:
        assert not moved


class Louder(nn.Module):
    """A layer that does something else while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, states):
        return states * self.weight * (3 if self.training else 1)


def test_model_that_computes_otherwise_in_training_is_refused_at_the_first_step(tiny_llava, preference_data, tmp_path):
    model = load_model(tiny_llava)
    model.get_decoder().norm = nn.Sequential(model.get_decoder().norm, Louder())
    trainer = open_own(tiny_llava, preference_data, tmp_path, PLAIN, model=model.eval())
    says = (
        r"different log-probabilities before the first step \(record 'r\d\d': reward -?\d.*must be 0\); a 'llava' model"
    )
    with pytest.raises(MfpoError, match=says):
        trainer.train()
    assert trainer.state.global_step == 0


def test_arguments_of_ones_own_decide_over_the_settings(tiny_llava, preference_data, tmp_path):
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to="none"
    )
    trainer = PreferenceTrainer(
        load_model(tiny_llava),
        TrainSettings(method="dpo", batch_size=8),
        arguments,
        processing_class=load_processor(tiny_llava),
        train_dataset=read_dataset(preference_data).remove_columns("id"),
    )
    trainer.train()
    assert trainer.state.global_step == 1
    assert len(next(iter(trainer.get_train_dataloader()))["rows"]) == 2


def test_adapter_of_ones_own_is_trained_as_it_is(tiny_llava, preference_data, tmp_path):
    adapter = get_peft_model(load_model(tiny_llava), LoraConfig(r=2, target_modules=["q_proj"]))
    trainer = open_own(tiny_llava, preference_data, tmp_path, PLAIN, model=adapter)
    assert {name.split(".")[-3] for name, weight in trainer.model.named_parameters() if weight.requires_grad} <= {
        "lora_A",
        "lora_B",
    }


def test_trainer_of_ones_own_has_no_stages_and_no_checkpoints_to_start_from(tiny_llava, preference_data, tmp_path):
    with pytest.raises(SettingError, match="a PreferenceTrainer has one stage"):
        open_own(tiny_llava, preference_data, tmp_path, {"curriculum": True})
    trainer = open_own(tiny_llava, preference_data, tmp_path, PLAIN)
    with pytest.raises(MfpoError, match=r"`mfpo\.train` resumes a killed run by itself"):
        trainer.train(resume_from_checkpoint=True)


def test_another_seed_gives_another_order(tiny_llava, preference_data, tmp_path):
    def rows(seed: int) -> list[int]:
        trainer = open_own(tiny_llava, preference_data, tmp_path, PLAIN | {"seed": seed})
        return [row for batch in trainer.get_train_dataloader() for row in batch["rows"].tolist()]

    assert sorted(rows(0)) == sorted(rows(1)) == list(range(14))
    assert rows(0) == rows(0) != rows(1)


def test_a_few_steps_have_no_warm_up():
    """The Trainer rounds a warm-up up to a step, whose rate is 0: a stage of one step would not train."""
    arguments = [training_arguments(TrainSettings(epochs=1).resolved(), Path("out"), records=n) for n in (14, 800)]
    assert [one.warmup_steps for one in arguments] == [0, 3]


def test_batches_and_precision_are_those_of_the_settings(tiny_llava, preference_data, tmp_path, monkeypatch):
    """Not as many records more as there are GPUs, and not what the file given to `accelerate launch` says."""

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    arguments = training_arguments(TrainSettings(**PLAIN | {"batch_size": 2}).resolved(), tmp_path, records=14)
    arguments._n_gpu = 4
    trainer = open_own(tiny_llava, preference_data, tmp_path, PLAIN, args=arguments)
    assert trainer.args.train_batch_size == 2
    assert arguments.mixed_precision == "no"


def test_metrics_average_over_the_records_of_the_logging_window(tiny_llava, preference_data, tmp_path):
    """14 records in batches of 6: the last of an epoch has 2."""
    curves = []
    for window in (1, 4):
        settings = PLAIN | {"batch_size": 6, "epochs": 2, "logging_steps": window, "save_steps": window}
        trainer = open_own(tiny_llava, preference_data, tmp_path / str(window), settings)
        trainer.train()
        curves.append([line for line in trainer.state.log_history if "rewards/chosen" in line])
    steps, wide = curves
    assert [line["step"] for line in wide] == [4, 6]
    expected = (6 * steps[0]["loss"] + 6 * steps[1]["loss"] + 2 * steps[2]["loss"] + 6 * steps[3]["loss"]) / 20
    assert wide[0]["loss"] == pytest.approx(expected, abs=1e-6)
    for name in ("learning_rate", "grad_norm"):
        assert [line[name] for line in wide] == [pytest.approx(steps[step][name]) for step in (3, 5)]


@pytest.mark.parametrize("folder", ["plain_run", "lora_run"])
def test_gradient_checkpointing_changes_nothing_but_memory(folder, request, tiny_llava, preference_data, tmp_path):
    settings = PLAIN | {"lora_rank": 4 if folder == "lora_run" else 0, "gradient_checkpointing": True}
    trainer = open_own(tiny_llava, preference_data, tmp_path, settings)
    trainer.train()
    whole = metrics_of(request.getfixturevalue(folder))
    curve = [line for line in trainer.state.log_history if "rewards/chosen" in line]
    for one, other in zip(curve, whole, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_two_batches_of_four_are_one_of_eight(tiny_llava, preference_data, tmp_path):
    """The second step has 6 of the 14 records, 4 and 2 in a batch, each of which weighs the same."""
    for name, batch_size, accumulation in (("plain", 8, 1), ("accumulated", 4, 2)):
        settings = PLAIN | {"batch_size": batch_size, "gradient_accumulation": accumulation}
        train(preference_data, tiny_llava, tmp_path / name, TrainSettings(**settings))
    for one, other in zip(metrics_of(tmp_path / "plain"), metrics_of(tmp_path / "accumulated"), strict=True):
        # Not the accuracies, which the last bit decides where policy and reference are still the same.
        for name in ("step", "loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-4)


@pytest.fixture
def loss_of(open_trainer):
    """The loss that the trainer gives for records 3 and 5 with a reference of our own."""

    def loss(data, settings: TrainSettings, reference: torch.Tensor) -> torch.Tensor:
        trainer = open_trainer(data, settings, reference)
        with torch.no_grad():
            batch = trainer.collate([trainer.train_dataset[0], trainer.train_dataset[1]])
            return trainer.compute_loss(trainer.model, batch, num_items_in_batch=2)

    return loss


def test_loss_is_the_formula_of_the_paper(ranked, staged_run, loss_of):
    columns = pq.read_table(staged_run / "reference.parquet").to_pylist()
    torch.manual_seed(0)
    ratios = torch.randn(14, 3)
    logps = torch.tensor([[row["chosen"], row["rejected"], row["rejected_image"]] for row in columns])
    settings = TrainSettings(beta=0.5, eta=0.2, text_weight=1.5, image_weight=0.5, margin_weight=2.0)
    loss = loss_of(ranked, settings, logps - ratios)
    expected = []
    for chosen, rejected, image in ratios[[3, 5]].tolist():
        terms = [0.5 * (chosen - rejected), 0.5 * (chosen - image), 0.5 * chosen - 0.2]
        expected.append(sum(w * math.log1p(math.exp(-x)) for w, x in zip((1.5, 0.5, 2.0), terms, strict=True)))
    assert loss.item() == pytest.approx(sum(expected) / 2, abs=1e-4)


@pytest.mark.parametrize("method", ["dpo", "eos", "ha-dpo"])
def test_a_record_that_fills_a_batch_up_changes_no_loss(method, ranked, open_trainer):
    """Some methods take a mean over the tokens of the batch."""
    settings = TrainSettings(method=method, curriculum=False)
    trainer = open_trainer(ranked, settings, torch.zeros(14, 2))
    counted, filler = trainer.train_dataset[0], trainer.train_dataset[3]
    assert (counted[1], filler[1]) == (True, False)
    losses = []
    with torch.no_grad():
        for records in ([counted], [counted, filler]):
            batch = trainer.collate(records)
            losses.append(trainer.compute_loss(trainer.model, batch, num_items_in_batch=1))
    assert losses[0] == losses[1] != 0


def test_loss_that_is_not_finite_names_the_records(preference_data, loss_of):
    reference = torch.zeros(14, 2)
    reference[5, 1] = torch.nan
    with pytest.raises(MfpoError, match=r"loss is no longer finite at record 'r05', step 1 of the stage; lower"):
        loss_of(preference_data, TrainSettings(method="dpo"), reference)


def test_gradient_that_is_not_finite_ends_the_run_before_the_weights_are_spoilt(
    tiny_llava, preference_data, tmp_path, monkeypatch
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
    with pytest.raises(
        MfpoError, match=r"the gradient is no longer finite at record .*, step 3 of the stage; lower"
    ) as error:
        train(preference_data, tiny_llava, tmp_path / "run", TrainSettings(**PLAIN | {"save_steps": 1}))
    assert all(repr(id) in str(error.value) for id in seen[2])
    kept = Path(re.search(r"last checkpoint before is (.*-2)$", str(error.value))[1])
    weights = load_model(kept).state_dict()
    assert all(value.isfinite().all() for value in weights.values())


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
