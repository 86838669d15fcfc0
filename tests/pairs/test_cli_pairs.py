"""`mfpo pairs` from the shell: an endpoint that is asked and judges, a killed run, settings without a use."""

import base64
import json
import re
import signal
import sys
import threading
import time

import pytest
from PIL import Image

from fixtures.processes import command as run_command
from fixtures.processes import start
from mfpo.cli import main
from mfpo.dataset import read_dataset
from mfpo.errors import SettingError
from mfpo.pairs.check import CHECKERS
from mfpo.pairs.run import pairs
from mfpo.pairs.settings import PairsSettings, check_use
from mfpo.settings import with_options

SAID = ("There is a dog. There is a cat.", "<think>A cat?</think>There is a dog and a cat.")
SPLIT = [{"words": name, "question": f"Is there {name}?"} for name in ("a dog", "a cat")]


@pytest.fixture
def server(fake_server):
    """Names a dog and a cat where there is a dog alone, in words that the request's seed says; and is its own judge."""
    pytest.importorskip("openai")

    class Server(fake_server):
        def well(self, request, body):
            content = body["messages"][-1]["content"]
            if isinstance(content, list) and "yes or no" in content[-1]["text"]:
                said = "Yes." if "dog" in content[-1]["text"] else "No."
            elif isinstance(content, list):
                said = SAID[body.get("seed", 0) % 2]
            elif "wrong" in content:
                said = "There is a dog."
            else:
                said = json.dumps([claim for claim in SPLIT if claim["words"] in content])
            self.send(request, 200, self.completion(said))

    with Server(None) as running:
        yield running


@pytest.fixture
def command(tmp_path, server, monkeypatch):
    """The words of a command that asks the server about eight images, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32), "red").save("photos/red.png")
    rows = [{"question_id": f"q{n}", "image": "red.png", "text": "What is there?"} for n in range(8)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "truth.jsonl").write_text(json.dumps({"image_id": "red.png", "objects": ["dog"]}))
    asked = ["pairs", "questions.jsonl", "--images", "photos", "--model", "m", "--endpoint", server.url]
    return [*asked, "samples=2", "shard_size=2", "concurrency=2", "pairing=corrected"]


@pytest.fixture
def here(monkeypatch, capsys):
    def run_here(*arguments):
        monkeypatch.setattr(sys, "argv", ["mfpo", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, capsys.readouterr().err

    return run_here


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_run_asks_only_what_is_left_and_ends_with_the_same_bytes(tmp_path, command, server, here):
    asked = [*command, "--check", "coco=truth.jsonl"]
    well, hangs = server.well, threading.Event()
    server.well = lambda *given: (len(server.bodies) > 9 and hangs.wait(60), well(*given))
    process = start(run_command, *asked, "--out", "own")
    try:
        while len(server.bodies) < 10:  # in the second shard: the greedy answer and two samples of two questions each
            assert process.is_alive()
            time.sleep(0.02)
    finally:
        process.kill()
        hangs.set()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [note.name for note in tmp_path.glob("own.partial/train-*.json")] == ["train-00000.json"]
    server.well = well
    server.bodies.clear()
    assert here(*asked, "--out", "own") == (0, "")
    assert len(server.bodies) == 3 * 6
    assert here(*asked, "--out", "whole") == (0, "")
    assert content(tmp_path / "own") == content(tmp_path / "whole")
    pairs = read_dataset(tmp_path / "own")
    assert pairs["id"] == [f"q{n}" for n in range(8)]
    assert {pair["chosen"][0]["content"] for pair in pairs} == {"There is a dog."}


def test_the_judge_at_an_endpoint_checks_rewrites_and_checks_again(tmp_path, command, server, here):
    judged = ["--check", "judge=m", f"judge_endpoint={server.url}", "rewrite=judge"]
    assert here(*command, *judged, "--out", "own")[0] == 0
    pair = read_dataset(tmp_path / "own")[0]
    assert pair["chosen"][0]["content"] == "There is a dog."
    assert pair["rejected"][0]["content"] == SAID[0]
    told = [(claim["answer"], claim["object"], claim["verdict"]) for claim in pair["claims"]]
    assert told == [("chosen", "a dog", "true"), ("rejected", "a dog", "true"), ("rejected", "a cat", "false")]
    assert (tmp_path / "own.verdicts.jsonl").exists()
    settings = PairsSettings(pairing="corrected", rewrite="judge", samples=2, shard_size=2, concurrency=2)
    how = {"check": "judge=m", "images": "photos", "endpoint": server.url}
    pairs("questions.jsonl", "m", "python", settings, **how, judge_endpoint=server.url)
    assert content(tmp_path / "python") == content(tmp_path / "own")
    with pytest.raises(SettingError, match="no setting is named 'attemps', did you mean 'attempts'"):
        pairs("questions.jsonl", "m", "other", settings, **how, attemps=2)


def test_a_question_that_the_endpoint_refuses_is_set_aside_even_if_it_is_the_last(tmp_path, command, server, here):
    well = server.well
    server.well = lambda request, body: (server.bad_request if "seven" in str(body) else well)(request, body)
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    rows = [*rows[:2], rows[7] | {"text": "What about seven?"}]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert here(*command, "--check", "coco=truth.jsonl", "--out", "own")[0] == 3
    (aside,) = (tmp_path / "own" / "rejected_rows.jsonl").read_text().splitlines()
    assert json.loads(aside)["id"] == "q7"
    assert "too long" in aside


def test_an_image_that_the_judge_refuses_is_set_aside_and_the_run_goes_on(tmp_path, command, server, here):
    Image.new("RGB", (32, 32), "blue").save("photos/blue.png")
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    rows[3]["image"] = "blue.png"
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    blue = base64.b64encode((tmp_path / "photos/blue.png").read_bytes()).decode()
    well = server.well

    def refuse(request, body):
        is_question = "yes or no" in str(body)
        (server.bad_request if is_question and blue in str(body) else well)(request, body)

    server.well = refuse
    judged = ["--check", "judge=m", f"judge_endpoint={server.url}"]
    assert here(*command, *judged, "--out", "own")[0] == 3
    (aside,) = map(json.loads, (tmp_path / "own" / "rejected_rows.jsonl").read_text().splitlines())
    assert (aside["row"], aside["id"]) == (3, "q3")
    assert re.fullmatch(r"the judge refuses \(.*400.*too long.*\)", aside["reason"])
    assert json.loads((tmp_path / "own" / "summary.json").read_text())["reasons"] == {"the judge refuses": 1}
    server.well = lambda request, body: (server.telltale if "yes or no" in str(body) else well)(request, body)
    status, said = here(*command, *judged, "--out", "other")
    assert (status, said.count("error: ")) == (1, 1)
    assert "401" in said


def test_an_endpoint_that_is_down_ends_the_run_in_one_line(tmp_path, command, server, here):
    server.well = server.bad_request
    rows = [{"question_id": f"q{n}", "image": "red.png", "text": "What is there?"} for n in range(30)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, said = here(*command, "--check", "coco=truth.jsonl", "--out", "own", "shard_size=30")
    assert (status, said.count("\n")) == (1, 1), said
    assert f"error: {server.url}: 20 questions in a row failed, the last with: the endpoint failed" in said


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("coco=questions.jsonl", "questions.jsonl, line 1: must be"),
        ("detector=photos", "photos: no model there"),
        ("detector=llava", "a 'llava' model, but must be grounding-dino or owlv2"),
        ("judge=m judge_endpoint=x", "the endpoint is 'x'"),
        ("judge=m attempts=0", "attempts is 0"),
    ],
)
def test_a_wrong_checker_is_told_before_the_model_is_loaded(command, here, tmp_path, check, words):
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "config.json").write_text('{"model_type": "llava"}')
    (tmp_path / "llava" / "model.safetensors").write_bytes(b"")
    name, *values = check.split()
    status, said = here(*command[:4], "--model", "llava", "--check", name, "--out", "own", *values)
    assert (status, said.count("\n")) == (1, 1), said
    assert words in said  # and nothing of the model, whose file is empty


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["picturebook:2", "--images", "photos"], "the picture book brings its images; leave out --images"),
        (["picturebook-context:2", "--images", "photos"], "the picture book brings its images; leave out --images"),
        (["picturebook:x"], "picturebook:x: 'x' is not a number of scenes; write picturebook:600"),
        (["picturebook-context:0"], "'0' is not a number of scenes; write picturebook-context:600"),
    ],
)
def test_mistakes_with_the_picture_book(here, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    status, said = here("pairs", *arguments, "--model", "picturebook", "--check", "dataset", "--out", "own")
    assert (status, said.count("\n")) == (1, 1), said
    assert words in said


@pytest.mark.parametrize(
    ("check", "engine", "endpoint", "values", "words"),
    [
        ("detector", None, None, {"concurrency": 2}, "concurrency is 2, but only --endpoint or --check judge=NAME has"),
        ("coco=x", None, "http://h/v1", {"batch_size": 2}, "batch_size is 2, but only a local model of transformers"),
        ("coco=x", "vllm", None, {"batch_size": 2}, "batch_size is 2"),
        ("judge", None, None, {"attempts": 2}, "attempts is 2, but only --check judge=NAME has a use for it"),
        ("judge", None, "http://h/v1", {}, "the model judges itself only when transformers runs it"),
        ("coco=x", None, None, {"pairing": "corrected", "rewrite": "judge"}, "rewrite=judge needs a judge"),
        ("coco=x", "vlm", None, {}, "no engine is named 'vlm'"),
        ("coco=x", "vllm", "http://h/v1", {}, "give one"),
        ("judge=m", "vllm", None, {"concurrency": 2, "attempts": 2}, None),
        ("coco=x", None, "http://h/v1", {"concurrency": 2, "timeout": 2.0}, None),
        ("judge", None, None, {"batch_size": 2}, None),
    ],
)
def test_settings_without_a_use_are_refused(check, engine, endpoint, values, words):
    settings = with_options(PairsSettings, CHECKERS[check.partition("=")[0]])(**values)
    if words is None:
        check_use(settings, check, engine, endpoint)
        return
    with pytest.raises(SettingError, match=words):
        check_use(settings, check, engine, endpoint)
