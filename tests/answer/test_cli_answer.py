"""`mfpo answer` as a user types it: endpoints that fail, a real server, an adapter."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from mfpo.answer.decoders import decoder
from mfpo.cli import main
from mfpo.cli.console import ROWS_SET_ASIDE
from mfpo.models import load_model
from mfpo.processors import load_processor
from mfpo.settings import about

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def folder(tmp_path):
    """Four questions on images of random pixels."""
    random = np.random.default_rng(0)
    rows = []
    for number, text in enumerate(["What is it?", "A dog?", "Which colour has the ball?", "Why?"]):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        rows.append({"question_id": f"q{number}", "image": f"{number}.png", "text": text})
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def arguments(folder, model, *more, out="a.jsonl"):
    paths = ["--images", folder, "--out", folder / out]
    return [str(word) for word in ("answer", folder / "q.jsonl", "--model", model, *paths, *more)]


@pytest.fixture
def mfpo(monkeypatch, capsys, folder):
    """The exit status and all that was printed."""

    def run(*words, **out):
        monkeypatch.setattr(sys, "argv", ["mfpo", *arguments(folder, *words, **out)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, " ".join((captured.out + captured.err).split())

    return run


def texts(folder, out="a.jsonl"):
    return [json.loads(line)["text"] for line in (folder / out).read_text().split("\n")[:-1]]


def test_what_failed_at_the_endpoint_is_status_3_and_asked_again(mfpo, folder, fake_server, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_server(lambda content: content[1]["text"].upper(), ["bad_request", "page", "wait"]) as server:
        ask = ("gpt-9", "--endpoint", server.url, "concurrency=1", "max_new_tokens=9")
        status, said = mfpo(*ask)
        assert (status, len(server.bodies)) == (ROWS_SET_ASIDE, 5)
        assert "4 questions, of which 2 failed" in said
        assert texts(folder) == [None, None, "WHICH COLOUR HAS THE BALL?", "WHY?"]
        status, said = mfpo(*ask)
        assert (status, "2 questions failed; --retry-failed asks them again" in said, len(server.bodies)) == (
            1,
            True,
            5,
        )
        status, said = mfpo(*ask, "--retry-failed")
        assert (status, len(server.bodies)) == (0, 7)
        assert "4 questions, of which 0 failed" in said
        assert texts(folder) == ["WHAT IS IT?", "A DOG?", "WHICH COLOUR HAS THE BALL?", "WHY?"]
        assert {body["max_tokens"] for body in server.bodies} == {9}
        assert KEY not in (folder / "a.jsonl").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--endpoint", "http://localhost:9/v1", "batch_size=4"], "batch_size is 4, but --endpoint has no use for it"),
        (["--engine", "vllm", "--batch-size", "4"], "batch_size is 4, but --engine vllm has no use for it"),
        (["concurrency=4"], "concurrency is 4, but --engine transformers has no use for it"),
        (["--retry-failed"], "--retry-failed asks an endpoint again"),
        (["--endpoint", "http://localhost:9/v1", "--engine", "vllm"], "--engine vllm is for a local model"),
    ],
)
def test_options_that_would_do_nothing(mfpo, folder, options, words):
    status, said = mfpo("picturebook", *options)
    assert (status, words in said) == (1, True), said


def test_the_picture_books_model_is_called_so_in_its_answers(mfpo, folder):
    assert mfpo("picturebook", "--max-new-tokens", "1")[0] == 0
    assert {json.loads(line)["model"] for line in (folder / "a.jsonl").read_text().splitlines()} == {"picturebook"}


def test_a_decoder_of_ones_own_has_settings_of_its_own(mfpo, folder):
    @decoder("echo")
    def echo(
        model, processor, questions, images, max_new_tokens, *, times: Annotated[int, about("repetitions", least=1)] = 1
    ):
        return [question["text"] * times for question in questions]

    (folder / "my.yaml").write_text("decode: echo\ntimes: 3\n")
    assert mfpo("picturebook", "--decode", "echo", "times=2")[0] == 0
    assert texts(folder)[1] == "A dog?A dog?"
    assert mfpo("picturebook", "--config", str(folder / "my.yaml"), out="b.jsonl")[0] == 0
    assert texts(folder, "b.jsonl")[1] == "A dog?A dog?A dog?"
    line = json.loads((folder / "a.jsonl").read_text().split("\n")[0])
    assert line["decode"] == {"strategy": "echo", "times": 2, "max_new_tokens": 512}
    for override, words in (("tims=2", "did you mean 'times'"), ("times=0", "times is 0, but must be 1 or more")):
        status, said = mfpo("picturebook", "--decode", "echo", override, out="c.jsonl")
        assert (status, words in said) == (1, True), said


def test_a_wrong_key_is_one_line_and_status_1(mfpo, fake_server, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_server(lambda content: "Yes", ["telltale"] * 4) as server:
        status, said = mfpo("gpt-9", "--endpoint", server.url)
    assert status == 1
    assert f"error: {server.url}" in said
    assert "set OPENAI_API_KEY to a valid key" in said
    assert KEY not in said


def test_ctrl_c_ends_the_command_at_once(folder, fake_server):
    pytest.importorskip("openai")
    hangs = threading.Event()
    with fake_server(lambda content: hangs.wait(60) and "Yes") as server:
        command = [str(Path(sys.executable).with_name("mfpo")), *arguments(folder, "m", "--endpoint", server.url)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            while len(server.bodies) < 4:
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=10) == 130
            assert process.stderr.read().endswith("stopped; run the same command again to reuse the answers so far\n")
        finally:
            process.kill()
            hangs.set()


def test_a_real_model_behind_an_endpoint_answers_as_here(mfpo, folder, served_llava):
    pytest.importorskip("openai")
    endpoint, name = served_llava
    assert mfpo(name, "--endpoint", endpoint, "max_new_tokens=8", out="there.jsonl")[0] == 0
    assert mfpo(name, "max_new_tokens=8", out="here.jsonl")[0] == 0
    assert texts(folder, "there.jsonl") == texts(folder, "here.jsonl")
    assert len(set(texts(folder, "here.jsonl"))) > 1


def test_an_adapter_answers_as_peft_has_it(mfpo, folder, tiny_llava):
    """Against the adapter beside its base, not merged into it, one question and one token at a time."""
    torch.manual_seed(1)
    base, processor = load_model(tiny_llava, dtype=torch.float32), load_processor(tiny_llava)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(base, config).eval()
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_llava)
    adapted.save_pretrained(folder / "adapter")
    processor.save_pretrained(folder / "adapter")

    def plain(row):
        image = Image.open(folder / row["image"])
        batch = processor(images=image, text=f"USER: <image>\n{row['text']} ASSISTANT:", return_tensors="pt")
        start = batch["input_ids"].shape[1]
        for _ in range(8):
            with torch.no_grad():
                token = adapted(**batch, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            batch["input_ids"] = torch.cat([batch["input_ids"], token], dim=1)
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            if token.item() == processor.tokenizer.eos_token_id:
                break
        return processor.decode(batch["input_ids"][0, start:], skip_special_tokens=True).strip()

    assert mfpo(folder / "adapter", "max_new_tokens=8")[0] == 0
    assert mfpo(tiny_llava, "max_new_tokens=8", out="base.jsonl")[0] == 0
    assert texts(folder) == [plain(row) for row in map(json.loads, (folder / "q.jsonl").read_text().splitlines())]
    assert texts(folder) != texts(folder, "base.jsonl")
