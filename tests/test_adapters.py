"""An adapter gives the weights that peft gives, under whichever names it was saved, or is refused in one line."""

import copy
import json
import math
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from mfpo.cli import main
from mfpo.errors import MfpoError
from mfpo.models import load_model
from mfpo.processors import load_processor

PREFIX = "base_model.model."
DECODER = r"model\.language_model\..*_proj"
LEAVES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_adapter(base: Path, folder: Path, config: Any) -> Path:
    """An adapter with random weights, as peft saves it, with the base's processor."""
    torch.manual_seed(1)
    adapted = get_peft_model(load_model(base, dtype=torch.float32), config)
    for name, weight in adapted.named_parameters():
        if weight.requires_grad and "lora_" not in name:
            torch.nn.init.normal_(weight)
    config.base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    load_processor(base).save_pretrained(folder)
    return folder


def by_peft(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    return PeftModel.from_pretrained(load_model(base), folder).merge_and_unload().state_dict()


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def change(folder: Path, **fields: Any) -> None:
    """Change the adapter's configuration."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def write_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole_adapter(tiny_llava, tmp_path_factory):
    """An adapter on the language model: 14 modules, 28 tensors."""
    config = LoraConfig(r=4, target_modules=DECODER, init_lora_weights=False)
    return save_adapter(tiny_llava, tmp_path_factory.mktemp("adapter") / "adapter", config)


@pytest.fixture
def adapter(whole_adapter, tmp_path):
    """A copy of it, to be broken."""
    return shutil.copytree(whole_adapter, tmp_path / "adapter")


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": LEAVES, "init_lora_weights": False} | options)


@pytest.mark.parametrize(
    "config",
    [
        lora(),
        lora(target_modules="all-linear"),
        lora(target_modules=["q_proj", "embed_tokens", "lm_head"]),
        lora(use_dora=True),
        lora(use_rslora=True),
        lora(target_modules=["fc1", "linear_2"], lora_bias=True),
        lora(bias="all"),
        lora(modules_to_save=["multi_modal_projector", "lm_head"]),
        lora(rank_pattern={r"layers\.1\..*": 2}, alpha_pattern={"o_proj": 32}),
        lora(layers_to_transform=[1], layers_pattern="layers"),
        lora(trainable_token_indices=[1, 5]),
        lora(target_modules=["q_proj"], task_type="CAUSAL_LM"),
        LoHaConfig(r=2, target_modules=["v_proj"]),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ],
    ids=range(14),
)
def test_each_kind_is_merged_as_peft_does(config, tiny_llava, tmp_path):
    folder = save_adapter(tiny_llava, tmp_path / "adapter", config)
    merged, base = load_model(folder), load_model(tiny_llava).state_dict()
    assert all(weight.requires_grad for weight in merged.parameters())
    assert_same(merged.state_dict(), by_peft(tiny_llava, folder))
    assert any(not torch.equal(weight, base[name]) for name, weight in merged.state_dict().items())


# Today's names -> those of transformers before 4.52.
def before_4_52(name: str) -> str:
    name = name.replace("model.language_model.", "language_model.model.").replace("lm_head", "language_model.lm_head")
    name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
    return name.replace("model.multi_modal_projector", "multi_modal_projector")


def before_5(name: str) -> str:
    return name.replace("model.vision_tower.", "model.vision_tower.vision_model.")


def rename(folder: Path, old_name: Any) -> dict[str, torch.Tensor]:
    tensors = {PREFIX + old_name(name.removeprefix(PREFIX)): value for name, value in tensors_of(folder).items()}
    write_tensors(folder, tensors)
    return tensors


@pytest.mark.parametrize("old_name", [before_4_52, before_5])
@pytest.mark.parametrize(
    ("options", "old_options"),
    [
        ({"target_modules": LEAVES}, {}),
        ({"target_modules": "all-linear"}, None),
        ({"target_modules": DECODER}, {"target_modules": r"(language_model\.model|model\.language_model)\..*_proj"}),
        (
            {"target_modules": r"model\.vision_tower\..*layers\.0.*q_proj|.*linear_2|lm_head"},
            {"target_modules": r".*vision_model\..*layers\.0.*q_proj|.*linear_2|.*lm_head"},
        ),
        ({"target_modules": LEAVES, "exclude_modules": r".*vision.*"}, {"exclude_modules": ".*vision_model.*"}),
        (
            {"target_modules": LEAVES, "exclude_modules": r".*vision.*", "alpha_pattern": {r"model\..*o_proj": 64}},
            {"alpha_pattern": {r"(language_model\.model|model\.language_model)\..*o_proj": 64}},
        ),
        ({"target_modules": LEAVES, "rank_pattern": {"o_proj": 2}, "modules_to_save": ["linear_1"]}, {}),
    ],
)
def test_names_of_older_transformers_give_the_same_weights(old_name, options, old_options, tiny_llava, tmp_path):
    folder = save_adapter(tiny_llava, tmp_path / "adapter", lora(**options))
    expected = load_model(folder).state_dict()
    names = [name for name in tensors_of(folder) if ".lora_A" in name]
    if old_options is None:  # as peft has written them out, with full names
        modules = [name.removeprefix(PREFIX).removesuffix(".lora_A.weight") for name in names]
        old_options = {"target_modules": [old_name(name) for name in modules]}
    rename(folder, old_name)
    change(folder, **old_options)
    assert_same(load_model(folder).state_dict(), expected)


def of_llava(name: str) -> str:
    name = name.replace("model.language_model.", "model.")
    return name.replace("multi_modal_projector.linear_1", "mm_projector.0").replace(
        "multi_modal_projector.linear_2", "mm_projector.2"
    )


@pytest.mark.parametrize("targets", [LEAVES, r"model\.layers\..*_proj", "model.layers.0.self_attn.q_proj"])
def test_names_of_the_original_llava_code_give_the_same_weights(targets, tiny_llava, tmp_path):
    """Its adapters name the last parts of modules, but have no tensors for the vision tower, which has such too."""
    wanted = DECODER if isinstance(targets, list) else targets.replace("model", r"model\.language_model", 1)
    folder = save_adapter(tiny_llava, tmp_path / "adapter", lora(target_modules=wanted))
    expected = load_model(folder).state_dict()
    rename(folder, of_llava)
    change(folder, target_modules=targets, task_type="CAUSAL_LM", auto_mapping=None)
    assert_same(load_model(folder).state_dict(), expected)


def test_what_the_original_llava_code_trains_beside_an_adapter(adapter, tiny_llava):
    expected = load_model(adapter).state_dict()
    projector = {name: value for name, value in expected.items() if "multi_modal_projector" in name}
    assert len(projector) == 4
    expected |= {name: value + 1 for name, value in projector.items()}
    rename(adapter, of_llava)
    change(adapter, target_modules=LEAVES)
    (adapter / "non_lora_trainables.bin").write_bytes(b"never opened")
    with pytest.raises(MfpoError, match=r"non_lora_trainables\.bin .* save them as non_lora_trainables\.safetensors"):
        load_model(adapter)
    beside = {PREFIX + of_llava(name): value + 1 for name, value in projector.items()}
    save_file(beside, adapter / "non_lora_trainables.safetensors")
    assert_same(load_model(adapter).state_dict(), expected)


def refused(folder: Path) -> str:
    with pytest.raises(MfpoError) as raised:
        load_model(folder)
    message = str(raised.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    assert len(message) < len(str(folder)) + 600
    return message.removeprefix(f"{folder}: ")


FIRST = "base_model.model.model.language_model.layers.0.mlp.down_proj.lora_A.weight"


def test_other_names_are_missing_and_unknown(adapter):
    """As in an adapter for a language model whose configuration says otherwise: nothing of it would be applied."""
    rename(adapter, lambda name: name.replace("language_model.", ""))
    assert refused(adapter) == (
        f"its adapter does not fit its base: 28 tensors are missing, such as {FIRST!r}; "
        "28 tensors are unknown, such as 'base_model.model.model.layers.0.mlp.down_proj.lora_A.weight'"
    )


@pytest.mark.parametrize("old_name", [lambda name: name, before_4_52])
@pytest.mark.parametrize(("dropped", "count"), [(".layers.0.mlp.down_proj.lora_A", 1), (".layers.0.", 14), ("", 28)])
def test_missing_tensors(old_name, dropped, count, adapter):
    tensors = rename(adapter, old_name)
    change(adapter, target_modules=LEAVES, exclude_modules=".*vision.*")
    write_tensors(adapter, {name: value for name, value in tensors.items() if dropped not in name})
    assert refused(adapter) == f"its adapter does not fit its base: {count} tensors are missing, such as {FIRST!r}"


def test_names_of_which_only_some_are_old_are_refused(adapter):
    rename(adapter, lambda name: before_4_52(name) if ".layers.1." in name else name)
    assert "14 tensors are missing" in (message := refused(adapter))
    assert "14 tensors are unknown, such as 'base_model.model.language_model.model.layers.1.mlp" in message


@pytest.mark.parametrize("name", ["lora_C", PREFIX + "lm_head.lora_A.weight", PREFIX + "x\ny", "z" * 5000])
def test_unknown_tensors(name, adapter):
    write_tensors(adapter, tensors_of(adapter) | {name: torch.ones(4, 32)})
    assert refused(adapter).startswith(
        f"its adapter does not fit its base: 1 tensors are unknown, such as {name[:100]!r}"
    )


@pytest.mark.parametrize(
    "value",
    [torch.ones(4, 63), torch.ones(64, 4), torch.ones(256), torch.ones(()), torch.ones(4, 64, dtype=torch.int8)],
)
def test_tensors_of_another_shape_or_type(value, adapter):
    write_tensors(adapter, tensors_of(adapter) | {FIRST: value})
    assert refused(adapter) == (
        f"its adapter does not fit its base: 1 tensors are of another shape or type, such as {FIRST!r}"
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r": 2}, "28 tensors are of another shape or type"),
        ({"target_modules": ["q_proj"]}, "24 tensors are unknown"),
        ({"target_modules": [*LEAVES, "lm_head"]}, "such as 'base_model.model.lm_head.lora_A.weight'"),
        ({"target_modules": ["nothing"]}, r"adapter_config\.json is wrong \(Target modules {'nothing'} not found"),
        ({"target_modules": []}, "targets nothing in its base|adapter_config.json is wrong"),
        ({"target_modules": "("}, r"adapter_config\.json is wrong"),
        ({"use_dora": True}, "14 tensors are missing"),
        ({"use_dora": "false"}, "use_dora in its adapter_config.json is 'false', but must be true or false"),
        ({"lora_alpha": True}, "lora_alpha in its adapter_config.json is True, but must be a number"),
        ({"lora_alpha": "16"}, "lora_alpha in its adapter_config.json is '16', but must be a number"),
        ({"r": "4"}, "r in its adapter_config.json is '4', but must be a number"),
        ({"lora_dropout": []}, r"lora_dropout in its adapter_config.json is \[\], but must be a number"),
        ({"target_modules": 7}, "target_modules in its adapter_config.json is 7, but must be a string or a list"),
        ({"exclude_modules": True}, "exclude_modules in its adapter_config.json is True, but must be a string or"),
        ({"rank_pattern": None}, "rank_pattern in its adapter_config.json is None, but must be an object of numbers"),
        ({"alpha_pattern": {"o_proj": "4"}}, "alpha_pattern in its .* is {'o_proj': '4'}, but must be an object of"),
        ({"r": None}, "has no r; add the value"),
        ({"lora_alpha": None}, "has no lora_alpha; add the value"),
        ({"lora_alpha": 0}, "a scale that is not positive"),
        ({"lora_alpha": -8}, "a scale that is not positive"),
        ({"alpha_pattern": {"o_proj": -1}}, "a scale that is not positive"),
        ({"lora_alpha": math.nan}, "not positive and finite"),
        ({"alpha_pattern": {"o_proj": 0}}, "a scale that is not positive"),
        ({"peft_type": "nobody knows"}, "not a valid peft config"),
        ({"peft_type": None}, "not a valid peft config|cannot be merged"),
        ({"base_model_name_or_path": 7}, "names no base model"),
        ({"base_model_name_or_path": "x" * 5000}, "is not a folder here"),
    ],
)
def test_wrong_configurations(fields, words, adapter):
    change(adapter, **fields)
    assert re.search(words, refused(adapter))


@pytest.mark.parametrize("content", ["[]", "7", "null", '"text"'])
def test_configurations_that_are_no_objects(content, adapter):
    (adapter / "adapter_config.json").write_text(content)
    assert refused(adapter) == "its adapter_config.json is not a peft config: it must be an object {...}"


@pytest.mark.parametrize("config", [lora(), LoHaConfig(r=2, target_modules=["v_proj"])], ids=["lora", "loha"])
@pytest.mark.parametrize("name", ["r", "alpha"])
def test_a_configuration_without_rank_or_alpha(config, name, tiny_llava, tmp_path):
    """peft would take 8, whatever the adapter was trained with."""
    folder = save_adapter(tiny_llava, tmp_path / "adapter", config)
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text())
    name = name if name in fields else f"lora_{name}"
    del fields[name]
    path.write_text(json.dumps(fields))
    assert refused(folder).startswith(f"its adapter_config.json has no {name}; ")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite(value, dtype, adapter):
    tensors = tensors_of(adapter)
    tensors[FIRST][1, 2] = value
    write_tensors(adapter, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    assert refused(adapter) == f"its adapter holds values that are not finite, in {FIRST!r}"


def test_names_with_the_adapters_name_are_unknown(adapter):
    """As in a state dict of peft's model that was saved as it is."""
    rename(adapter, lambda name: name.replace(".weight", ".default.weight"))
    unknown = FIRST.replace(".weight", ".default.weight")
    assert refused(adapter).endswith(
        f"28 tensors are missing, such as {FIRST!r}; 28 tensors are unknown, such as {unknown!r}"
    )


def test_pefts_advice_is_not_printed_but_what_it_ignores_is(tiny_llava, tmp_path):
    folder = save_adapter(tiny_llava, tmp_path / "adapter", lora(target_modules=["q_proj", "embed_tokens"]))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load_model(folder)
    assert [str(one.message) for one in said if issubclass(one.category, UserWarning)] == []
    change(folder, of_the_future=True)
    with pytest.warns(UserWarning, match="of_the_future"):
        load_model(folder)


def test_what_cannot_be_merged_is_refused(tiny_llava, adapter):
    config = PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM", base_model_name_or_path=str(tiny_llava))
    config.save_pretrained(adapter)
    assert "PREFIX_TUNING adapter cannot be merged" in refused(adapter)


TRICKY = [
    None,
    True,
    False,
    0,
    3,
    -1,
    1.5,
    math.nan,
    "",
    "no",
    "x" * 5000,
    [],
    ["nothing"],
    [0],
    {},
    {"a": "b"},
    {"a": 1},
]
FIELDS = sorted({*LoraConfig(r=4).to_dict(), "unknown to peft"})
WEIRD = ["", "{", "[]", "7", "null", '"text"', "{}", "[" * 5000, '{"peft_type": "LORA"}', "\ud800"]


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, Any, Any]:
    kind = draw(st.sampled_from(["field", "field", "json", "cut", "flip", "rename", "drop", "add", "reshape", "dtype"]))
    match kind:
        case "field":
            return kind, draw(st.sampled_from(FIELDS)), draw(st.sampled_from(TRICKY))
        case "json":
            return kind, None, draw(st.sampled_from(WEIRD))
        case "cut" | "flip":
            return kind, None, draw(st.floats(0, 1, exclude_max=True))
    value = draw(st.sampled_from(["a", PREFIX + "lm_head.weight", FIRST.replace("down", "up"), FIRST.upper(), ""]))
    return kind, draw(st.integers(0, 27)), value


def mutate(folder: Path, kind: str, key: Any, value: Any) -> None:
    path, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    content, tensors = path.read_bytes(), tensors_of(folder)
    name = sorted(tensors)[key] if isinstance(key, int) else ""
    match kind:
        case "field":
            return change(folder, **{key: value})
        case "json":
            return config.write_bytes(value.encode("utf-8", "surrogatepass")) and None
        case "cut":
            return path.write_bytes(content[: int(value * len(content))]) and None
        case "flip":  # in the header, which says what is where
            size = 8 + int.from_bytes(content[:8], "little")
            place = int(value * size)
            return path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]) and None
        case "rename":
            tensors[value] = tensors.pop(name)
        case "drop":
            del tensors[name]
        case "add":
            tensors[value] = tensors[name].clone()
        case "reshape":
            tensors[name] = tensors[name].T.contiguous()
        case "dtype":
            tensors[name] = tensors[name].to(torch.bfloat16 if key % 2 else torch.int64)
    write_tensors(folder, tensors)


def by_hand(base: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """W + s B A, from the files as they are."""
    config, tensors = json.loads((folder / "adapter_config.json").read_text()), tensors_of(folder)
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    merged = copy.copy(base)
    for name in tensors:
        if ".lora_A" in name:
            place = name.removeprefix(PREFIX).replace("lora_A.", "")
            change = tensors[name.replace("lora_A", "lora_B")].float() @ tensors[name].float()
            merged[place] = base[place] + scale * change
        elif ".lora_B" not in name:
            merged[name.removeprefix(PREFIX)] = tensors[name]
    return merged


@pytest.mark.filterwarnings("ignore")
def test_mutated_adapters_give_the_right_weights_or_are_refused(adapter, tiny_llava, tmp_path):
    base, broken = load_model(tiny_llava).state_dict(), tmp_path / "broken"
    made = {True: 0, False: 0}

    @settings(max_examples=100, derandomize=True, deadline=None, database=None)
    @given(mutations())
    def each(drawn: tuple[str, Any, Any]) -> None:
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(adapter, broken)
        mutate(broken, *drawn)
        try:
            merged = load_model(broken).state_dict()
        except MfpoError as error:
            message = str(error)
            made[False] += 1
        else:
            assert_same(merged, by_hand(base, broken))
            made[True] += 1
            return
        assert "\n" not in message
        assert len(message) < len(str(broken)) + 600

    each()
    # Both ends are reached, or the mutations would be too weak or too strong to say anything.
    assert made[True] > 10
    assert made[False] > 40


@pytest.fixture
def mfpo(monkeypatch, capsys):
    """The exit status and what was printed on stderr."""

    def run(*arguments: Any) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["mfpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return run


def test_every_command_refuses_an_adapter_that_does_not_fit(adapter, preference_data, tmp_path, mfpo):
    tensors = tensors_of(adapter)
    del tensors[FIRST]
    write_tensors(adapter, tensors)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 1, "image": "red.png", "text": "What?"}))
    for command in (
        ["merge", adapter],
        ["answer", tmp_path / "q.jsonl", "--images", tmp_path, "--model", adapter],
        ["rank", preference_data, "--model", adapter],
        ["train", preference_data, "--model", adapter, "method=dpo"],
    ):
        out = tmp_path / f"out-{command[0]}"
        code, printed = mfpo(*command, "--out", out)
        assert code == 1
        assert printed.splitlines()[-1].endswith(f"base: 1 tensors are missing, such as {FIRST!r}")
        assert "Traceback" not in printed
        assert not out.exists()


def test_merge_takes_the_folder_of_an_adapter(adapter, tmp_path, mfpo):
    status, printed = mfpo("merge", adapter, "--out", tmp_path / "merged")
    assert status == 0
    assert "Writing" not in printed, "no progress bar of transformers"
    assert_same(load_model(tmp_path / "merged").state_dict(), load_model(adapter).state_dict())
    load_processor(tmp_path / "merged")
