"""The settings of training: what a method adds, and what does not go together."""

import copy
import math
import pickle
from dataclasses import asdict, fields, replace
from typing import Annotated

import pytest

from mfpo.errors import SettingError
from mfpo.settings import about, options_of, read_settings
from mfpo.train.methods.ddpo import ddpo, weigh_changed
from mfpo.train.objectives import OBJECTIVES, LogRatios, objective
from mfpo.train.settings import TrainSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "mpfo"}, "no method is named 'mpfo'; did you mean 'mfpo'"),
        ({"method": "dpo", "eta": 0.5}, "method dpo has no eta"),
        ({"method": "dpo", "image_weight": 0.5}, "image_weight is 0.5, but method dpo has no image_weight"),
        ({"method": "dpo", "margin_weight": 2.0}, "margin_weight is 2.0, but method dpo has no margin_weight"),
        ({"text_weight": 0.0, "image_weight": 0.0, "margin_weight": 0.0}, "are all 0"),
        ({"method": "dpo", "rerank": True}, "rerank is for stages from easy to hard; set curriculum=true"),
        ({"curriculum": False, "reset_reference": True}, "reset_reference is for stages"),
        ({"epochs": 0}, "epochs is 0, but must be 1 or more"),
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
        ({"batch_size": 0, "beta": -1.0}, "batch_size is 0, but must be 1 or more; beta is -1.0"),
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
    assert {name: added[name] for name in list(added)[:9]} == {  # other tests may add methods
        "mfpo": weights | {"margin_weight": 1.0, "beta": 0.1, "eta": 0.0},
        "dpo": {"text_weight": 1.0, "beta": 0.1},
        "mdpo": weights | {"margin_weight": 1.0, "beta": 0.1},
        "ddpo": {"text_weight": 1.0, "beta": 0.5, "gamma": 5.0, "normalize": True},
        "ha-dpo": {"text_weight": 1.0, "beta": 0.1, "lm_weight": 0.5},
        "povid": weights | {"beta": 0.1},
        "halva": {"text_weight": 1.0, "kl_weight": 0.4},
        "eos": {"lm_weight": 1.0},
        "hacl": {"lm_weight": 1.0, "temperature": 0.07, "contrast_weight": 1.0, "all_hallucinated": False},
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
    with pytest.raises(SettingError, match="method is dpo, but these are settings of ddpo"):
        replace(settings, method="dpo")


def test_settings_of_another_method_are_refused_by_name():
    for make in (TrainSettings, lambda **values: read_settings(TrainSettings, None, [], **values)):
        with pytest.raises(SettingError, match="gamma is 3, but method mfpo has no gamma"):
            make(gamma=3)
        with pytest.raises(SettingError, match=r"kl_weight is 1\.0, but method dpo has no kl_weight"):
            make(method="dpo", kl_weight=1.0)
    with pytest.raises(SettingError, match=r"but method mfpo has no gamma; no setting is named 'bta', did you"):
        read_settings(TrainSettings, None, ["gamma=3", "bta=1"])


def test_a_loss_of_ones_own_has_settings_and_weights_of_its_own():
    @objective("ours", terms=("text", "image", "lm"))
    def ours(
        ratios: LogRatios, *, tau: Annotated[float, about("a number", above=0)] = 3.0, lm_weight: float = 2.0, hidden=1
    ):
        return {"text": tau * ratios.chosen, "image": ratios.chosen, "lm": lm_weight * ratios.chosen}

    settings = read_settings(TrainSettings, None, ["tau=2", "image_weight=0.5"], method="ours")
    assert options_of(settings, ours) == {"tau": 2.0}
    assert settings.weights() == {"text": 1.0, "image": 0.5}
    with pytest.raises(SettingError, match=r"tau is -1\.0, but must be above 0"):
        read_settings(TrainSettings, None, ["tau=-1"], method="ours")
    with pytest.raises(SettingError, match="tau is 2, but method dpo has no tau"):
        read_settings(TrainSettings, None, ["tau=2"], method="dpo")
    with pytest.raises(SettingError, match="the package has a method named 'dpo'"):
        objective("dpo", terms=("text",))(ours)
    assert "ours" in OBJECTIVES


def test_a_loss_that_asks_for_what_nobody_brings_is_refused_when_it_is_made():
    with pytest.raises(SettingError, match="method ours-too asks for beta, but there are ratios, chosen_nll, policy"):

        @objective("ours-too", terms=("text",))
        def ours_too(ratios: LogRatios, beta: float = 0.1):
            return {"text": beta * ratios.chosen}
