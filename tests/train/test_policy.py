"""Which weights of each family move, how its language model attends, and what is saved of it."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Llama4Config, Llama4ForConditionalGeneration

from fixtures.families import deepseek_vl_hybrid, qwen3_vl_moe
from mfpo.errors import SettingError
from mfpo.models import load_model, save_as_on_hub
from mfpo.train import policy as policy_module
from mfpo.train.policy import attention_of, lora_targets, make_trainable, open_policy
from mfpo.train.settings import TrainSettings

FLEX = TrainSettings(attention="flex_attention")
# Why families have no FlexAttention.
WITHOUT_FLEX = dict.fromkeys(
    ("aria", "glm46v", "glm4v", "glm_ocr", "qwen2_5_vl", "qwen2_vl", "qwen3_vl"),
    r"transformers does not support it for a '.*_text' language model",
) | dict.fromkeys(("aya_vision", "gemma3", "gemma4", "idefics2"), "a sliding window, or see images both ways")


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(policy_module, "device", lambda: torch.device("cuda"))


def test_language_model_attends_by_flex_attention_on_a_gpu_where_it_can(family, on_a_gpu):
    wanted = attention_of(family.model, TrainSettings())
    assert wanted == ("sdpa" if family.name in WITHOUT_FLEX else "flex_attention")
    family.model.set_attn_implementation({"text_config": wanted})
    assert family.model.config.get_text_config()._attn_implementation == wanted
    assert attention_of(family.model, TrainSettings(attention="sdpa")) == "sdpa"
    if wanted == "flex_attention":
        assert attention_of(family.model, FLEX) == "flex_attention"
        return
    with pytest.raises(SettingError, match=WITHOUT_FLEX[family.name] + ".*; set attention=sdpa"):
        attention_of(family.model, FLEX)


def test_flex_attention_on_a_cpu_is_refused(make_llava):
    with pytest.raises(SettingError, match="it has no backward pass on a CPU; set attention=sdpa"):
        attention_of(make_llava().model, FLEX)


def test_narrow_heads_and_an_old_torch_have_no_flex_attention(make_llava, on_a_gpu, monkeypatch):
    narrow = make_llava(num_attention_heads=8, num_key_value_heads=8).model
    assert attention_of(narrow, TrainSettings()) == "sdpa"
    with pytest.raises(SettingError, match="heads of width 16 or more, and these have 8"):
        attention_of(narrow, FLEX)
    wide = make_llava().model
    monkeypatch.setattr(policy_module.flex_attention, "py_kernels", {})
    assert attention_of(wide, TrainSettings()) == "sdpa"
    with pytest.raises(SettingError, match="has no mixed precision"):
        attention_of(wide, FLEX)


def test_projector_and_language_model_are_trained_and_the_vision_tower_is_not(family):
    policy = make_trainable(family.model, TrainSettings(), targets=[], adapter=None)
    parts: dict[bool, set[str]] = {True: set(), False: set()}
    for name, weight in policy.named_parameters():
        parts[weight.requires_grad].add(name)
    projectors = {name for name in parts[True] if "language_model" not in name and "text_model" not in name}
    assert {name for name in projectors if "lm_head" not in name}, "the projector"
    # Of Janus also what draws images, which gets no gradient; Ovis2 looks its images up in a table.
    words = (
        "projector",
        "merger",
        "connector",
        "aligner",
        "visual_embeddings_table",
        "embed_vision",
        "lm_head",
        "generation",
    )
    assert all(any(word in name for word in words) for name in projectors - {"model.image_newline"})
    assert parts[False]
    assert all(any(word in name for word in ("vision", "visual", "vqmodel")) for name in parts[False])
    assert not any("merger" in name for name in parts[False])


def test_a_second_vision_tower_is_frozen_too():
    model = make_trainable(deepseek_vl_hybrid(), TrainSettings(), targets=[], adapter=None)
    frozen = {".".join(name.split(".")[:2]) for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == {"model.vision_model", "model.high_res_vision_model"}
    assert all(not weight.requires_grad for weight in model.model.high_res_vision_model.parameters())


def test_everything_moves_when_the_vision_tower_is_trained(family):
    policy = make_trainable(family.model, TrainSettings(train_vision_tower=True), targets=[], adapter=None)
    assert all(weight.requires_grad for weight in policy.parameters())


def tensors(path) -> dict[str, list[int]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def test_whole_policy_is_saved_with_the_tensors_and_the_config_of_its_source(family, tmp_path):
    """So that whatever reads the source, vLLM too, reads what was trained from it."""
    save_as_on_hub(family.model, tmp_path / "made")
    load_model(tmp_path / "made").save_pretrained(tmp_path / "source")
    policy = open_policy(tmp_path / "source", TrainSettings(attention="sdpa"), last=None)
    policy.save_pretrained(tmp_path / "saved")
    one, other = (tensors(tmp_path / name / "model.safetensors") for name in ("source", "saved"))
    assert one == other
    one, other = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("source", "saved"))
    assert one == other


def test_adapter_is_saved_with_the_names_of_the_modules_it_is_for(family, tmp_path):
    family.model.save_pretrained(tmp_path / "source")
    linear = {
        name
        for name, module in family.model.named_modules()
        if isinstance(module, nn.Linear) and ("language_model" in name or "text_model" in name)
    }
    policy = open_policy(tmp_path / "source", TrainSettings(lora_rank=2).resolved(), last=None)
    policy.save_pretrained(tmp_path / "saved")
    found = tensors(tmp_path / "saved" / "adapter_model.safetensors")
    experts = [name for name, _ in family.model.named_parameters() if ".experts." in name]
    # peft puts those of a second weight of a module around the first's.
    adapted = linear | {name.replace(".down_proj", ".base_layer").replace(".gate_up_proj", "") for name in experts}
    if family.name == "glm4v_moe":  # peft takes what is dense in it for experts of old, and has none for it
        adapted -= {name for name in linear if ".mlp." in name}
    assert set(found) == {f"base_model.model.{name}.lora_{part}.weight" for name in adapted for part in "AB"}
    assert set(lora_targets(family.model, TrainSettings(lora_rank=2))) == linear | set(experts)


def test_experts_of_a_mixture_are_trained_and_what_is_adapted_is_told(tmp_path, capsys):
    torch.manual_seed(0)
    qwen3_vl_moe()[0].save_pretrained(tmp_path / "source")
    policy = open_policy(tmp_path / "source", TrainSettings(lora_rank=2).resolved(), last=None)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "adapters on 2 experts.down_proj, 2 experts.gate_up_proj, 2 k_proj, 2 o_proj, 2 q_proj, 2 v_proj"
    )
    ids = torch.arange(20, 40)[None]
    policy(input_ids=ids).logits.logsumexp(-1).sum().backward()
    gradients = {name: weight.grad for name, weight in policy.named_parameters() if "experts" in name and "_B" in name}
    assert len(gradients) == 4
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    with torch.no_grad():
        expected = policy(input_ids=ids).logits
        with policy.disable_adapter():
            assert not torch.allclose(policy(input_ids=ids).logits, expected, atol=1e-2)
        policy.save_pretrained(tmp_path / "saved")
        merged = load_model(tmp_path / "saved")
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_neither_head_nor_router_gets_an_adapter_unless_it_is_named(capsys):
    shape = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"num_key_value_heads": 2, "intermediate_size_mlp": 48, "vocab_size": 64, "head_dim": 16, "pad_token_id": 0}
    vision = {"image_size": 32, "patch_size": 8, "vision_output_dim": 64, "projector_input_dim": 64}
    config = Llama4Config(
        vision_config=shape | vision | {"intermediate_size": 256, "projector_output_dim": 64},
        text_config=shape | text | {"num_local_experts": 4, "interleave_moe_layer_step": 1},
    )
    model = Llama4ForConditionalGeneration(config)
    names = lora_targets(model, TrainSettings(lora_rank=2))
    kinds = {".".join(name.split(".")[-2:]) for name in names}
    assert kinds == {f"self_attn.{part}_proj" for part in "qkvo"} | {
        f"{place}.{part}_proj" for place, parts in EXPERTS.items() for part in parts
    }
    router = lora_targets(model, TrainSettings(lora_rank=2, lora_targets=r".*\.router"))
    assert len(router) == 2
    make_trainable(
        model, TrainSettings(lora_rank=2, lora_targets=r".*\.router").resolved(), targets=router, adapter=None
    )
    assert capsys.readouterr().err == "adapters on 2 router\n"


EXPERTS = {"experts": ("gate_up", "down"), "shared_expert": ("gate", "up", "down")}


# What the language model was called before transformers 4.52; the other families are newer or had today's names.
OLD_NAMES = dict.fromkeys(("llava", "llava_next", "llava_onevision", "vipllava"), "language_model.model.")
OLD_NAMES |= {"qwen2_5_vl": "model.", "qwen2_vl": "model."}


def test_adapter_of_each_family_is_merged_under_its_names_of_then_and_now(family, tmp_path):
    # peft has none for the linear layers of Gemma 4's vision tower.
    targets = ".*language_model.*_proj" if family.name == "gemma4" else ".*_proj"
    family.model.save_pretrained(tmp_path / "source")
    policy = open_policy(tmp_path / "source", TrainSettings(lora_rank=2, lora_targets=targets).resolved(), last=None)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    policy.save_pretrained(tmp_path / "saved")
    expected = policy.merge_and_unload().state_dict()
    torch.testing.assert_close(load_model(tmp_path / "saved").state_dict(), expected)
    whole = open_policy(tmp_path / "saved", TrainSettings(attention="sdpa"), last=None)
    torch.testing.assert_close(whole.state_dict(), expected)

    old = OLD_NAMES.get(family.name, "model.language_model.")
    file, config = tmp_path / "saved" / "adapter_model.safetensors", tmp_path / "saved" / "adapter_config.json"
    names = {name: name.replace("model.language_model.", old) for name in tensors(file)}
    if "llava" in family.name:
        names = {name: new.replace("model.vision_tower.", "vision_tower.vision_model.") for name, new in names.items()}
    save_file({names[name]: value for name, value in load_file(file).items()}, file)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": targets}))
    torch.testing.assert_close(load_model(tmp_path / "saved").state_dict(), expected)
