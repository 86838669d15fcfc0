import json
from importlib.util import find_spec

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fixtures.broken import edit
from mfpo.errors import MfpoError
from mfpo.hub import find_model
from mfpo.models import load_model, stored_dtype
from mfpo.processors import load_processor


def test_missing_weights_are_not_filled_with_random_ones(model):
    weights = load_file(model / "model.safetensors")
    del weights[next(name for name in weights if name.endswith("o_proj.weight"))]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MfpoError, match=r"1 weights are missing .*o_proj\.weight"):
        load_model(model)


def test_a_file_of_weights_that_was_broken_off(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(MfpoError, match="weights cannot be loaded"):
        load_model(model)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model_type": "nobody knows"}'])
def test_a_configuration_that_is_none(model, content):
    (model / "config.json").write_text(content)
    with pytest.raises(MfpoError, match=r"config\.json is not a valid transformers config"):
        load_model(model)


def test_code_of_a_model_is_never_run(model):
    (model / "evil.py").write_text("raise SystemExit('evil')\nclass Evil: pass\n")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoProcessor": "evil.Evil"}}
    (model / "config.json").write_text(json.dumps(config))
    for load in (load_model, load_processor):
        with pytest.raises(MfpoError):
            load(model)


def write_adapter(folder, base):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": base})
    )
    return folder


def test_a_pickled_adapter_is_refused(tiny_llava, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", str(tiny_llava))
    (adapter / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(MfpoError, match=r"no adapter_model\.safetensors"):
        load_model(adapter)


def test_an_adapter_that_was_broken_off(tiny_llava, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", str(tiny_llava))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(MfpoError, match="its adapter cannot be loaded"):
        load_model(adapter)


@pytest.mark.parametrize(
    ("base", "words"),
    [(None, "names no base model"), ("adapter", "is an adapter too"), ("other", "is an adapter too")],
)
def test_an_adapter_without_a_base_on_itself_or_in_a_circle(tmp_path, monkeypatch, base, words):
    monkeypatch.chdir(tmp_path)
    adapter, other = write_adapter(tmp_path / "adapter", base), write_adapter(tmp_path / "other", "adapter")
    for folder in (adapter, other):
        (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(MfpoError, match=words):
        load_model(adapter)


@pytest.mark.parametrize("name", ["nowhere", "../up", "a/-b", "/tmp/none"])
def test_what_is_no_name_on_the_hub_is_a_folder(name):
    assert str(find_model(name)) == name


def test_a_hub_name_that_cannot_be_had(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MfpoError, match="no-one/nothing: no such folder, and it could not be downloaded from the Hub"):
        find_model("no-one/nothing")


def test_an_encoder_decoder_is_refused(tmp_path):
    transformers.Florence2Config().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    for load in (load_model, load_processor):
        with pytest.raises(MfpoError, match="a 'florence2' model is an encoder-decoder"):
            load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_without_a_dtype_in_the_configuration_have_their_own(model, dtype):
    weights = {name: weight.to(dtype) for name, weight in load_file(model / "model.safetensors").items()}
    name = min(weights, key=lambda name: weights[name].numel())
    save_file(weights | {name: weights[name].float()}, model / "model.safetensors", metadata={"format": "pt"})
    edit(model / "config.json", dtype=None)
    assert stored_dtype(model) == dtype


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_a_model_whose_tower_is_of_timm_says_so_in_one_line(model):
    config = json.loads((model / "config.json").read_text())
    tower = {"model_type": "timm_wrapper", "architecture": "fastvit_mci3"}
    edit(model / "config.json", model_type="fast_vlm", vision_config=tower, text_config=config["text_config"])
    with pytest.raises(MfpoError, match=r"config\.json is not a valid .*Only 'full' is supported in FastVLM"):
        load_model(model)
    edit(model / "config.json", vision_feature_select_strategy="full")
    with pytest.raises(MfpoError, match=r"its vision tower needs timm; pip install 'mfpo\[vlms\]'$"):
        load_model(model)
