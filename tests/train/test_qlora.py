"""Adapters on a base in 4 bits, against plain adapters on a base of the same rounded weights."""

from pathlib import Path

import pytest
import torch

from fixtures.runs import PLAIN, Killed, assert_same_run, metrics_of
from mfpo.cli import main
from mfpo.models import load_model
from mfpo.processors import load_processor
from mfpo.train.policy import open_policy
from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings
from mfpo.train.trainer import PreferenceTrainer

bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes; pip install 'mfpo[qlora]'")
LORA = PLAIN | {"lora_rank": 4, "save_steps": 1}


@pytest.fixture(scope="module")
def in_4_bits(tiny_llava, preference_data, tmp_path_factory) -> Path:
    settings = TrainSettings(**LORA, quantize_4bit=True)
    return train(preference_data, tiny_llava, tmp_path_factory.mktemp("qlora") / "run", settings)


def test_curve_is_that_of_a_base_with_the_rounded_weights(in_4_bits, tiny_llava, preference_data, tmp_path):
    base = load_model(tiny_llava)
    quantized = open_policy(tiny_llava, TrainSettings(lora_rank=1, quantize_4bit=True).resolved(), last=None)
    weights = dict(base.named_parameters())
    rounded = 0
    for name, module in quantized.get_base_model().named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            value = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            weights[name.removesuffix(".base_layer") + ".weight"].data = value.float()
            rounded += 1
    assert rounded > 20
    base.save_pretrained(tmp_path / "rounded")
    load_processor(tiny_llava).save_pretrained(tmp_path / "rounded")
    plain = train(preference_data, tmp_path / "rounded", tmp_path / "plain", TrainSettings(**LORA))
    for ours, theirs in zip(metrics_of(in_4_bits), metrics_of(plain), strict=True):
        for name in ("loss", "rewards/chosen", "rewards/margins", "logps/rejected"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4), name
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def test_killed_run_ends_like_one_left_alone(in_4_bits, tiny_llava, preference_data, tmp_path, monkeypatch):
    save = PreferenceTrainer._save_checkpoint

    def save_and_die(self, *arguments):
        save(self, *arguments)
        if self.state.global_step == 2:
            raise Killed

    settings = TrainSettings(**LORA, quantize_4bit=True)
    with monkeypatch.context() as patch:
        patch.setattr(PreferenceTrainer, "_save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            train(preference_data, tiny_llava, tmp_path / "run", settings)
    train(preference_data, tiny_llava, tmp_path / "run", settings)
    assert_same_run(tmp_path / "run", in_4_bits)


def test_adapter_is_merged_into_the_whole_base(in_4_bits, tiny_llava, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["mfpo", "merge", str(in_4_bits), "--out", str(tmp_path / "merged")])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    base, merged = (load_model(folder).state_dict() for folder in (tiny_llava, tmp_path / "merged"))
    moved = {name for name, weight in base.items() if not torch.equal(weight, merged[name])}
    assert moved
    assert all("language_model" in name for name in moved)
