"""Against a real HTTP server that speaks /v1/chat/completions and misbehaves when told to."""

import base64
import io
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mfpo.answer.by_endpoint import open_endpoint
from mfpo.answer.run import answer
from mfpo.answer.settings import AnswerSettings
from mfpo.errors import MfpoError, SettingError

pytest.importorskip("openai", reason="endpoints need the openai package: pip install 'mfpo[judge]'")
KEY = "sk-very-secret-0123456789"
NAMES = ("a.jpg", "b.png", "c.webp", "d.bmp", "e.png")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Questions 0 to 4, one on each image; e.png has transparency."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    images = tmp_path / "private_photos"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    for name in NAMES:
        Image.fromarray(pixels if name == "e.png" else pixels[..., :3]).save(images / name, lossless=True)
    ask_about(tmp_path, NAMES)
    return tmp_path


def ask_about(folder, names):
    rows = [{"question_id": number, "image": name, "text": f"What is {number}?"} for number, name in enumerate(names)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def answers(folder, server, retry_failed=False, **settings):
    """How many answers there are, and how many of them are errors."""
    settings = AnswerSettings(**{"retries": 1, "concurrency": 2} | settings)
    files = (folder / "q.jsonl", "gpt-9", folder / "private_photos", folder / "a.jsonl")
    lines = answer(*files, settings, endpoint=server.url, retry_failed=retry_failed)
    return len(lines), sum("error" in line for line in lines)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "a.jsonl").read_text().split("\n")[:-1]]


def echo(content):
    return f" You ask: {content[1]['text']}\n"


@pytest.fixture
def flaky(fake_server):
    """A server that does as `broken` says with the questions named there."""

    class Flaky(fake_server):
        def __init__(self, reply):
            super().__init__(reply)
            self.broken = {}

        def well(self, request, body):
            text = body["messages"][-1]["content"][1]["text"]
            getattr(self, self.broken.get(text, "good"))(request, body)

        def good(self, request, body):
            super().well(request, body)

        def echo_key(self, request, body):
            self.send(request, 400, {"error": {"message": f"x\n{request.headers['Authorization']}"}})

        def content(self, request, text, **message):
            reply = self.completion(text)
            reply["choices"][0]["message"] |= message
            self.send(request, 200, reply)

        def silent(self, request, body):
            self.content(request, None)

        def refuse(self, request, body):
            self.content(request, None, refusal="I cannot help with that.")

        def parts(self, request, body):
            self.content(request, [{"type": "text", "text": "Yes"}])

        def number(self, request, body):
            self.content(request, 7)

        def cut_off(self, request, body):
            reply = self.completion("")
            reply["choices"][0]["finish_reason"] = "length"
            self.send(request, 200, reply)

        def half(self, request, body):
            self.content(request, "cut \ud83d off")

    return Flaky


def test_each_question_has_its_answer(folder, fake_server):
    with fake_server(echo) as server:
        assert answers(folder, server, max_new_tokens=77) == (5, 0)
    decode = {"max_tokens": 77, "temperature": 0.0}
    assert rows_of(folder) == [
        {"question_id": str(number), "image": name, "prompt": f"What is {number}?"}
        | {"text": f"You ask: What is {number}?", "model": "gpt-9", "decode": decode}
        for number, name in enumerate(NAMES)
    ]
    assert {key for body in server.bodies for key in body} == {"model", "messages", "max_tokens", "temperature"}
    assert all(headers["authorization"] == f"Bearer {KEY}" for headers in server.headers)


def test_images_arrive_intact_and_without_their_names(folder, fake_server):
    with fake_server(echo) as server:
        answers(folder, server)
    sent = {}
    for body in server.bodies:
        image, text = body["messages"][0]["content"]
        head, data = image["image_url"]["url"].split(",")
        sent[text["text"]] = (head, base64.b64decode(data, validate=True))
        assert not any(word in json.dumps(body) for word in ("private_photos", *NAMES))
    kinds = ("jpeg", "png", "webp", "png", "png")
    for number, (name, kind) in enumerate(zip(NAMES, kinds, strict=True)):
        head, data = sent[f"What is {number}?"]
        own = folder / "private_photos" / name
        assert head == f"data:image/{kind};base64"
        assert (data == own.read_bytes()) == (number < 3)
        seen = np.asarray(Image.open(io.BytesIO(data)))
        if name == "e.png":
            assert seen.shape == (24, 32, 3)
        else:
            np.testing.assert_array_equal(seen, np.asarray(Image.open(own)))


def test_the_image_stands_at_its_place_in_the_question(folder, fake_server):
    row = {"question_id": 0, "image": "a.jpg", "text": "What is in <image> here?"}
    (folder / "q.jsonl").write_text(json.dumps(row))
    with fake_server(lambda content: "A dog.") as server:
        answers(folder, server)
    parts = server.bodies[0]["messages"][0]["content"]
    assert [part.get("text", part["type"]) for part in parts] == ["What is in ", "image_url", " here?"]
    assert rows_of(folder)[0]["prompt"] == row["text"]


@pytest.mark.parametrize("fault", ["wait", "server_error", "cut", "slow"])
def test_a_passing_fault_is_waited_out(folder, fake_server, fault):
    with fake_server(echo, [fault]) as server:
        start = time.monotonic()
        assert answers(folder, server, timeout=0.5, concurrency=1) == (5, 0)
        assert len(server.bodies) == 6
        assert fault != "wait" or time.monotonic() - start > 1.5  # its Retry-After
    assert [row["text"] for row in rows_of(folder)] == [f"You ask: What is {number}?" for number in range(5)]


@pytest.mark.parametrize(
    ("fault", "words", "requests"),
    [
        ("server_error", "500", 2),
        ("bad_request", "too long", 1),
        ("cut", "cut, 2 times", 2),
        ("slow", "timeout of 0.5 s, 2 times", 2),
        ("malformed", "not a chat completion", 1),
        ("page", "not a chat completion", 1),
        ("no_choices", "not a chat completion", 1),
        ("silent", "no text (finish_reason stop)", 1),
        ("cut_off", "no text (finish_reason length)", 1),
        ("parts", "not a chat completion", 1),
        ("number", "not a chat completion", 1),
        ("echo_key", "[key]", 1),
    ],
)
def test_a_question_that_fails_is_kept_with_its_error(folder, flaky, fault, words, requests):
    with flaky(echo) as server:
        server.broken = {"What is 2?": fault}
        assert answers(folder, server, timeout=0.5) == (5, 1)
        assert len(server.bodies) == 4 + requests
        rows = rows_of(folder)
        assert [row["question_id"] for row in rows] == list("01234")
        assert [row["question_id"] for row in rows if "error" in row] == ["2"]
        assert rows[2]["text"] is None
        assert words in rows[2]["error"]
        assert KEY not in (folder / "a.jsonl").read_text()
        server.broken = {}
        server.bodies.clear()
        assert answers(folder, server, retry_failed=True) == (5, 0)
        assert len(server.bodies) == 1
    assert [row["text"] for row in rows_of(folder)] == [f"You ask: What is {number}?" for number in range(5)]


def test_a_refusal_and_an_empty_text_are_answers(folder, flaky):
    with flaky(lambda content: "" if "0" in content[1]["text"] else "Yes") as server:
        server.broken = {"What is 1?": "refuse", "What is 2?": "half"}
        assert answers(folder, server) == (5, 0)
    assert [row["text"] for row in rows_of(folder)] == ["", "I cannot help with that.", "cut ? off", "Yes", "Yes"]


def test_a_short_key_is_not_struck_out_of_the_answers(folder, fake_server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with fake_server(lambda content: "A box next to six foxes") as server:
        assert answers(folder, server) == (5, 0)
    assert {row["text"] for row in rows_of(folder)} == {"A box next to six foxes"}


def test_ctrl_c_ends_at_once_and_nothing_is_sent_after_it(folder, fake_server, interrupted):
    hangs = threading.Event()
    with fake_server(lambda content: hangs.wait(20) and "Yes") as server:
        with interrupted(lambda: len(server.bodies) == 2):
            answers(folder, server, timeout=5.0)
        time.sleep(6.5)  # the timeout, and the pause before the first repetition
        assert len(server.bodies) == 2
        hangs.set()
        assert answers(folder, server) == (5, 0)


def test_a_wrong_key_ends_the_run_and_is_not_shown(folder, fake_server):
    with fake_server(echo, ["telltale"] * 5) as server, pytest.raises(MfpoError, match="set OPENAI_API_KEY") as error:
        answers(folder, server)
    assert KEY not in str(error.value)
    assert error.value.__context__ is None
    files = [path for path in folder.iterdir() if path.is_file()]
    assert len(files) == 3
    assert not any(KEY.encode() in path.read_bytes() for path in files)


def test_a_server_that_goes_down_ends_the_run_and_the_same_call_goes_on(folder, flaky):
    ask_about(folder, ["b.png"] * 40)
    with flaky(echo) as server:
        server.broken = {f"What is {number}?": "bad_request" for number in range(10, 40)}
        with pytest.raises(MfpoError, match=r"20 questions in a row failed, the last with: .*too long"):
            answers(folder, server)
        assert not (folder / "a.jsonl").exists()
        server.broken = {}
        server.bodies.clear()
        assert answers(folder, server) == (40, 0)
        # A request of the first run may have come late, so that one of these is there twice.
        asked = {body["messages"][0]["content"][1]["text"] for body in server.bodies}
        assert asked == {f"What is {number}?" for number in range(10, 40)}
    assert [row["text"] for row in rows_of(folder)] == [f"You ask: What is {number}?" for number in range(40)]


def test_questions_are_asked_at_the_same_time(folder, fake_server):
    ask_about(folder, ["b.png"] * 12)
    with fake_server(lambda content: time.sleep(0.1) or "Yes") as server:
        answers(folder, server, concurrency=4)
    assert server.most == 4


def test_a_server_of_ones_own_needs_no_key(folder, fake_server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with fake_server(echo) as server:
        assert answers(folder, server, temperature=None) == (5, 0)
    assert "temperature" not in server.bodies[0]


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("localhost:8000/v1", "must look like http"),
        ("ftp://localhost/v1", "must look like http"),
        ("http://[::1/v1", "must look like http"),
        ("http://localhost:abc/v1", "must look like http"),
        (f"htp://me:{KEY}@localhost/v1", "must hold no key"),
        (f"http://me:{KEY}@localhost/v1", "must hold no key"),
        (f"http://localhost/v1?key={KEY}", "must hold no key"),
    ],
)
def test_an_endpoint_that_is_none_is_refused(folder, endpoint, words):
    with pytest.raises(SettingError, match=words) as error:
        answer(folder / "q.jsonl", "m", folder / "private_photos", folder / "a.jsonl", endpoint=endpoint)
    assert KEY not in str(error.value)


def test_the_note_of_a_run_names_the_folder_of_its_images(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    engine = open_endpoint("http://localhost:9/v1", "m", Path("photos"), AnswerSettings())
    assert engine.made_by["images"] == str(tmp_path / "photos")
