"""What can be said of vLLM without it."""

import json
from importlib.util import find_spec

import pytest
from PIL import Image

from mfpo.answer.run import answer
from mfpo.errors import MfpoError


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


def test_an_adapter_is_refused(questions, tiny_llava, tmp_path):
    from peft import LoraConfig, get_peft_model

    from mfpo.models import load_model

    model = load_model(tiny_llava)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(MfpoError, match="mfpo merge"):
        answer(questions, tmp_path / "adapter", tmp_path, tmp_path / "a.jsonl", engine="vllm")
