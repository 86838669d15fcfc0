"""What can be said of vLLM without it."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from mfpo.answer.by_vllm import adapter_rank, engine_options, open_vllm
from mfpo.answer.run import answer
from mfpo.answer.settings import AnswerSettings
from mfpo.errors import MfpoError
from mfpo.images import encode_image
from mfpo.models import default_dtype, load_model, model_files
from mfpo.pairs.ask import open_asker
from mfpo.pairs.questions import Asked
from mfpo.pairs.settings import PairsSettings


@pytest.fixture
def questions(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 1, "image": "red.png", "text": "What is it?"}) + "\n")
    return tmp_path / "q.jsonl"


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_its_absence_is_said(questions, tiny_llava, tmp_path):
    with pytest.raises(MfpoError, match=r"pip install 'mfpo\[vllm\]'"):
        answer(questions, tiny_llava, tmp_path, tmp_path / "a.jsonl", engine="vllm")
    assert not list(tmp_path.glob("a.jsonl*"))


def adapter(base, folder, **config):
    get_peft_model(load_model(base), LoraConfig(lora_alpha=8, **config)).save_pretrained(folder)
    return folder


def test_a_model_is_loaded_greedily_from_safetensors_in_our_precision(tiny_llava):
    assert engine_options(tiny_llava) == {
        "model": str(tiny_llava),
        "load_format": "safetensors",
        "dtype": str(default_dtype()).split(".")[1],
        "generation_config": "vllm",
        "limit_mm_per_prompt": {"image": 1},
    }


@pytest.mark.parametrize(("rank", "room"), [(1, 8), (8, 8), (9, 16), (129, 256), (512, 512)])
def test_an_adapter_of_the_language_model_is_put_on_its_base(rank, room, tiny_llava, tmp_path):
    folder = adapter(tiny_llava, tmp_path / "adapter", r=rank, target_modules=r".*language_model.*q_proj")
    lora = {"model": str(tiny_llava), "enable_lora": True, "max_lora_rank": room}
    assert engine_options(folder) == engine_options(tiny_llava) | lora


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"target_modules": ["linear_1"]}, "multi_modal_projector.linear_1.lora_A"),
        ({"target_modules": ["q_proj"]}, "vision_tower.*q_proj.lora_A"),  # vLLM would pass over it
        ({"target_modules": ["o_proj"], "use_dora": True}, "lora_magnitude_vector"),
        ({"target_modules": ["o_proj"], "r": 513}, "its rank is 513, but vLLM's limit is 512"),
    ],
)
def test_an_adapter_that_vllm_would_not_apply_in_full_is_refused(config, fault, questions, tiny_llava, tmp_path):
    folder = adapter(tiny_llava, tmp_path / "adapter", **config)
    with pytest.raises(MfpoError, match=f"{fault}.*mfpo merge"):
        answer(questions, folder, tmp_path, tmp_path / "a.jsonl", engine="vllm")


def test_the_language_model_of_idefics3_is_called_otherwise(tiny_llava, tmp_path):
    folder = adapter(tiny_llava, tmp_path / "adapter", target_modules=["o_proj"])
    tensors = load_file(folder / "adapter_model.safetensors")
    moved = {name.replace("language_model", "text_model"): tensor for name, tensor in tensors.items()}
    save_file(moved, folder / "adapter_model.safetensors")
    assert adapter_rank(folder) == 8


def test_adapters_of_experts_are_refused(tiny_llava, tmp_path):
    folder = adapter(tiny_llava, tmp_path / "adapter", target_modules=["o_proj"])
    tensors = load_file(folder / "adapter_model.safetensors")
    moved = {name.replace("self_attn.o_proj", "mlp.experts"): tensor for name, tensor in tensors.items()}
    save_file(moved, folder / "adapter_model.safetensors")
    with pytest.raises(MfpoError, match=r"mlp\.experts\.lora_A"):
        adapter_rank(folder)


def test_the_note_of_a_run_names_the_folder_of_its_images(tiny_llava, tmp_path, monkeypatch):
    """With vLLM in name only, as it is not installed."""
    vllm = SimpleNamespace(SamplingParams=lambda **how: how)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr("mfpo.answer.by_vllm.load_llm", lambda model: (tiny_llava, None, None))
    monkeypatch.chdir(tmp_path)
    made_by = open_vllm("m", Path("photos"), AnswerSettings()).made_by
    assert made_by["images"] == str(tmp_path / "photos")
    assert made_by["fingerprint"] == model_files(tiny_llava)


class Llm:
    """Says each question back; every second answer of a call is cut."""

    def __init__(self):
        self.calls = []

    def chat(self, chats, how, **_):
        self.calls.append((len(chats), how))
        texts = [chat[0]["content"][-1]["text"] for chat in chats]
        ends = ["stop", "length"] * len(texts)
        return [
            SimpleNamespace(outputs=[SimpleNamespace(text=f" {text} ", finish_reason=end)])
            for text, end in zip(texts, ends, strict=False)
        ]


@pytest.fixture
def llm(tiny_llava, monkeypatch):
    llm = Llm()
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **how: how))
    monkeypatch.setattr("mfpo.answer.by_vllm.load_llm", lambda model: (tiny_llava, llm, None))
    return llm


def test_vllm_is_asked_in_chunks_and_answers_stay_with_their_questions(llm, tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "red.png")
    monkeypatch.setattr("mfpo.answer.by_vllm._CHUNK", 2)
    asked = [{"question_id": str(number), "image": "red.png", "text": f"What is {number}?"} for number in range(5)]
    answered = list(open_vllm("m", tmp_path, AnswerSettings()).ask(asked))
    assert answered == [(question, {"text": question["text"]}) for question in asked]
    assert [count for count, _ in llm.calls] == [2, 2, 1]


def test_vllm_gives_each_question_its_greedy_answer_and_its_samples(llm):
    image = encode_image(Image.new("RGB", (8, 8)))
    asked = [Asked(id, image, "a.png", f"What is {id}?") for id in "ab"]
    answers = open_asker("m", PairsSettings(samples=2, temperature=0.5), engine="vllm").ask(asked)
    assert [[one.text for one in some] for some in answers] == [["What is a?"] * 3, ["What is b?"] * 3]
    assert [[one.cut for one in some] for some in answers] == [[False, True, False], [True, False, True]]
    [(_, how)] = llm.calls
    assert [one["temperature"] for one in how] == [0.0, 0.5, 0.5] * 2
    assert how[0]["seed"] is how[3]["seed"] is None
    assert len({one["seed"] for one in how}) == 5
