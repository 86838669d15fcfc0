"""The settings of training: what a method adds, and what does not go together."""

import copy
import math
import pickle
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import yaml
from transformers import SchedulerType, TrainingArguments

from mfpo.errors import MfpoError, SettingError
from mfpo.settings import about, options_of, read_settings
from mfpo.train.arguments import check_arguments, steps_of_stages, training_arguments
from mfpo.train.methods.ddpo import ddpo, weigh_changed
from mfpo.train.objectives import OBJECTIVES, LogRatios, objective
from mfpo.train.settings import TrainSettings
from mfpo.train.transformers_settings import REFUSED, TransformersSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "mpfo"}, "no method is named 'mpfo'; did you mean 'mfpo'"),
        ({"method": "dpo", "eta": 0.5}, "method dpo has no eta"),
        ({"method": "dpo", "image_weight": 0.5}, "image_weight is 0.5, but method dpo has no image_weight"),
        ({"method": "dpo", "margin_weight": 2.0}, "margin_weight is 2.0, but method dpo has no margin_weight"),
        ({"text_weight": 0.0, "image_weight": 0.0, "margin_weight": 0.0}, "are all 0"),
        ({"image_loss": "joint", "image_weight": 0.2}, "weighted by text_weight; leave image_weight out"),
        ({"hinge_margin": 2.0}, "hinge_margin is for image_loss=hinge"),
        ({"method": "dpo", "rerank": True}, "rerank is for stages from easy to hard; set curriculum=true"),
        ({"curriculum": False, "reset_reference": True}, "reset_reference is for stages"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0, but must be above 0"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"warmup_steps": -1.0}, "warmup_steps is -1.0, but must be 0 or more"),
        ({"warmup_ratio": 0.1}, "warmup_ratio is not a setting: it is called warmup_steps"),
        (
            {"remove_unused_columns": True, "fp16": True},
            "remove_unused_columns is not a setting: .*; fp16 is not a setting: ",
        ),
        ({"epochs": 1, "num_train_epochs": 2}, "epochs is now called num_train_epochs; give only one of them"),
        ({"weight_deca": 0.1}, "no setting is named 'weight_deca', did you mean 'weight_decay'"),
        ({"max_steps": 0}, "max_steps is 0, but must be 1 or more"),
        ({"eval_steps": 5}, "eval_steps is for held-out pairs; set eval=DATA too"),
        ({"keep_best": "eval/loss"}, "keep_best is for held-out pairs"),
        (
            {"eval": "x", "keep_best": "eval/accuracies"},
            "no figure named 'eval/accuracies'; did you mean 'eval/rewards/acc",
        ),
        ({"eval": "x", "keep_best": "eval/rewards/balance"}, "keep_best: there is no figure named"),
        ({"eval_on_start": True}, "eval_on_start is for held-out pairs"),
        ({"lora_rank": 4, "lora_alpha": 0}, "lora_alpha is 0, but must be above 0"),
        ({"lora_alpha": 8}, "lora_alpha scales adapters, but lora_rank is 0"),
        ({"lora_rank": 4, "lora_targets": "*q_proj"}, "lora_targets is no regular expression .*write .*q_proj"),
        (
            {"eval": "x", "keep_best": "eval/loss", "reset_reference": True},
            "would compare rewards over different references",
        ),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"beta": math.nan}, "beta is nan"),
        ({"eta": math.nan}, "eta is nan"),
        ({"image_weight": -1.0}, "image_weight is -1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"quantize_4bit": True}, "quantize_4bit is for adapters, but lora_rank is 0"),
        ({"lora_targets": ".*"}, "lora_rank is 0"),
        ({"logging_steps": 10, "save_steps": 25}, "save_steps is 25, but must be a multiple of logging_steps"),
        ({"lora_rank": 8, "train_vision_tower": True}, "name them in lora_targets"),
        ({"per_device_train_batch_size": 0, "beta": -1.0}, "batch_size is 0, but must be 1 or more; beta is -1.0"),
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


def test_a_method_brings_its_settings_and_a_weight_for_each_term():
    general = {field.name for field in fields(TrainSettings)}
    added = {name: {field.name: field.default for field in own} for name, own in TrainSettings.added().items()}
    weights = {"text_weight": 1.0, "image_weight": 1.0}
    assert {name: added[name] for name in list(added)[:13]} == {  # other tests may add methods
        "mfpo": weights | {"margin_weight": 1.0, "beta": 0.1, "eta": 0.0, "image_loss": "sigmoid", "hinge_margin": 4.5},
        "dpo": {"text_weight": 1.0, "beta": 0.1},
        "mdpo": weights | {"margin_weight": 1.0, "beta": 0.1},
        "ddpo": {"text_weight": 1.0, "beta": 0.5, "gamma": 5.0, "normalize": True},
        "ha-dpo": {"text_weight": 1.0, "beta": 0.1, "lm_weight": 0.5},
        "povid": weights | {"beta": 0.1},
        "halva": {"text_weight": 1.0, "kl_weight": 0.4},
        "eos": {"lm_weight": 1.0},
        "hacl": {"lm_weight": 1.0, "temperature": 0.07, "contrast_weight": 1.0, "all_hallucinated": False},
        "chip": {"joint_weight": 1.0, "beta": 0.1, "gamma": 4.0, "kl_weight": 0.1},
        "symmpo": {"text_weight": 1.0, "margin_weight": 1.0, "beta": 0.1}
        | {"symmetric_weight": 0.5, "consistency_weight": 1e-4},
        "s-vco": {"attend_weight": 1.0, "reject_weight": 1.0, "beta": 0.1},
        "counterfactual": {"text_weight": 1.0, "margin_weight": 1.0, "beta": 0.1, "eta": 0.0}
        | {"counter_text_weight": 1.0, "counter_margin_weight": 1.0},
    }
    assert not general & {name for own in added.values() for name in own}


def test_settings_of_a_method_are_flat():
    settings = TrainSettings(method="ddpo", gamma=3.0, epochs=2)
    assert asdict(settings)["gamma"] == 3.0
    assert settings == read_settings(TrainSettings, None, ["gamma=3", "epochs=2"], method="ddpo")
    assert options_of(settings, ddpo) == {"beta": 0.5}
    assert options_of(settings, weigh_changed) == {"gamma": 3.0, "normalize": True}
    assert replace(settings, gamma=4.0).gamma == 4.0
    assert pickle.loads(pickle.dumps(settings)) == copy.copy(settings) == settings
    with pytest.raises(SettingError, match="method is dpo, but these settings are for ddpo"):
        replace(settings, method="dpo")


def test_every_field_of_training_arguments_is_a_setting_of_its_type_or_refused_with_a_reason():
    fields_of_theirs = {field.name: field for field in fields(TrainingArguments)}
    ours, theirs = get_type_hints(TrainSettings), get_type_hints(TrainingArguments)
    assert len(fields_of_theirs) > 100
    assert not ours.keys() & REFUSED.keys()
    assert fields_of_theirs.keys() <= ours.keys() | REFUSED.keys()
    assert REFUSED.keys() - fields_of_theirs.keys() == {"warmup_ratio"}  # of earlier versions
    passed_on = {field.name for field in fields(TransformersSettings)}
    assert passed_on <= fields_of_theirs.keys()
    for name in passed_on:
        wanted = next(kind for kind in get_args(ours[name]) if kind is not type(None))
        kinds = {get_origin(kind) or kind for kind in (get_args(theirs[name]) or (theirs[name],))}
        assert wanted in kinds, name
    schedules = get_args(get_type_hints(TrainSettings)["lr_scheduler_type"])
    without = {"reduce_lr_on_plateau", "greedy"}  # they read a figure of the training
    assert {kind.value for kind in SchedulerType} - without == {*schedules}


def test_former_names_say_the_same_and_reasons_reach_the_command_line(tmp_path):
    former = {"epochs": 2, "batch_size": 4, "gradient_accumulation": 3}
    now = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    assert TrainSettings(**former) == TrainSettings(**now)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(former | {"lr_scheduler_kwargs": {"num_cycles": 2}}))
    read = read_settings(TrainSettings, tmp_path / "config.yaml", [])
    assert read == TrainSettings(**now, lr_scheduler_kwargs={"num_cycles": 2})
    assert read == read_settings(TrainSettings, None, ["lr_scheduler_kwargs={num_cycles: 2}"], **former)
    for override, message in {
        "weight_deca=0.1": "no setting is named 'weight_deca', did you mean 'weight_decay'",
        "weight_decay=much": "weight_decay is 'much', but must be a number",
        "lr_scheduler_kwargs=[2]": "lr_scheduler_kwargs is '.2.', but must be a mapping",
        "lr_scheduler_kwargs={a: 2": "lr_scheduler_kwargs is '.a: 2', but must be a mapping",
        "load_best_model_at_end=true": "load_best_model_at_end is not a setting: keep_best=eval/NAME keeps",
        "batch_size=few": "per_device_train_batch_size is 'few', but must be a whole number",
    }.items():
        with pytest.raises(SettingError, match=message):
            read_settings(TrainSettings, None, [override])


def test_what_was_given_of_transformers_is_shown_with_ours_and_passed_on():
    given = {"weight_decay": 0.1, "optim": "adafactor", "dataloader_num_workers": 2, "max_grad_norm": 0.5}
    settings = TrainSettings(**given, lr_scheduler_type="constant", save_total_limit=3, push_to_hub=True)
    assert settings.shown().items() >= given.items()
    assert "adam_beta1" not in settings.shown()
    arguments = training_arguments(settings.resolved(), Path("out"), records=8)
    assert {name: getattr(arguments, name) for name in given} == given
    assert (arguments.lr_scheduler_type, arguments.save_total_limit, arguments.push_to_hub) == ("constant", 3, False)
    with pytest.raises(SettingError, match=r"transformers refuses one of optim=adamw_9bit .*: adamw_9bit is not a"):
        check_arguments(TrainSettings(optim="adamw_9bit").resolved())
    with pytest.raises(
        SettingError, match="lr_scheduler_type=cosine_with_min_lr: One of min_lr or min_lr_rate should be"
    ):
        check_arguments(TrainSettings(lr_scheduler_type="cosine_with_min_lr").resolved())
    with pytest.raises(SettingError, match=r"lr_scheduler_type=polynomial: .* unexpected keyword argument 'powr'"):
        check_arguments(TrainSettings(lr_scheduler_type="polynomial", lr_scheduler_kwargs={"powr": 2}).resolved())
    check_arguments(TrainSettings(lr_scheduler_type="polynomial", lr_scheduler_kwargs={"power": 2}).resolved())
    check_arguments(settings.resolved())


def test_max_steps_is_a_total_over_stages_shared_out_by_their_records():
    plan = [("easy", [0] * 5), ("medium", [0] * 5), ("hard", [0] * 4)]
    assert steps_of_stages(plan, TrainSettings(max_steps=500)) == [179, 178, 143]
    assert sum(steps_of_stages(plan, TrainSettings(max_steps=7))) == 7
    assert steps_of_stages(plan, TrainSettings(num_train_epochs=1.5, per_device_train_batch_size=2)) == [5, 5, 3]
    with pytest.raises(MfpoError, match="max_steps is 2, but each of the 3 stages needs at least one"):
        steps_of_stages(plan, TrainSettings(max_steps=2))


def test_settings_of_another_method_are_refused_by_name():
    for make in (TrainSettings, lambda **values: read_settings(TrainSettings, None, [], **values)):
        with pytest.raises(SettingError, match="gamma is 3, but method mfpo has no gamma"):
            make(gamma=3)
        with pytest.raises(SettingError, match=r"kl_weight is 1\.0, but method dpo has no kl_weight"):
            make(method="dpo", kl_weight=1.0)
    with pytest.raises(SettingError, match=r"but method mfpo has no gamma; no setting is named 'bta', did you"):
        read_settings(TrainSettings, None, ["gamma=3", "bta=1"])


def test_a_loss_of_ones_own_has_settings_and_weights_of_its_own():
    def faults(settings):
        return ["tau=4 is for image_weight below 5"] if settings["tau"] == 4 and settings["image_weight"] >= 5 else []

    @objective("ours", terms=("text", "image", "lm"), faults=faults)
    def ours(
        ratios: LogRatios, *, tau: Annotated[float, about("a number", above=0)] = 3.0, lm_weight: float = 2.0, hidden=1
    ):
        return {"text": tau * ratios.chosen, "image": ratios.chosen, "lm": lm_weight * ratios.chosen}

    settings = read_settings(TrainSettings, None, ["tau=2", "image_weight=0.5"], method="ours")
    assert options_of(settings, ours) == {"tau": 2.0}
    assert settings.weights() == {"text": 1.0, "image": 0.5}
    with pytest.raises(SettingError, match=r"tau is -1\.0, but must be above 0"):
        read_settings(TrainSettings, None, ["tau=-1"], method="ours")
    with pytest.raises(SettingError, match="tau=4 is for image_weight below 5"):
        read_settings(TrainSettings, None, ["tau=4", "image_weight=5"], method="ours")
    assert read_settings(TrainSettings, None, ["tau=4"], method="ours").tau == 4
    with pytest.raises(SettingError, match="tau is 2, but method dpo has no tau"):
        read_settings(TrainSettings, None, ["tau=2"], method="dpo")
    with pytest.raises(SettingError, match="the package has a method named 'dpo'"):
        objective("dpo", terms=("text",))(ours)
    assert "ours" in OBJECTIVES


def test_a_loss_that_asks_for_what_nobody_brings_is_refused_when_it_is_made():
    with pytest.raises(
        SettingError, match="method ours-too asks for beta, but the inputs are ratios, chosen_nll, policy"
    ):

        @objective("ours-too", terms=("text",))
        def ours_too(ratios: LogRatios, beta: float = 0.1):
            return {"text": beta * ratios.chosen}

    with pytest.raises(SettingError, match="method ours names an unknown cell 'countr'; did you mean 'counter'"):
        objective("ours", terms=("text",), cells=("chosen", "countr"))
    with pytest.raises(SettingError, match="method ours needs rejected among its cells"):
        objective("ours", terms=("text",), cells=("chosen",), weigh=weigh_changed)
