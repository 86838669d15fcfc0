"""A finished model goes to a repository of the Hub: here to a server that keeps what it gets."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from mfpo.errors import MfpoError
from mfpo.train.push import open_repository, push
from mfpo.train.run import run
from mfpo.train.settings import TrainSettings


class Hub(BaseHTTPRequestHandler):
    """Takes every file as a small one, in the commit itself."""

    asked: list[tuple[str, dict]]
    files: dict[str, bytes]

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        self.asked.append((self.path, lines[0]))
        url = f"http://{self.headers['Host']}/me/tiny"
        answer: dict = {"url": url}
        if "preupload" in self.path:
            small = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": file["path"], **small} for file in lines[0]["files"]]}
        if "commit" in self.path:
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.files.update({file["path"]: base64.b64decode(file["content"]) for file in files})
            answer = {"commitUrl": f"{url}/commit/1", "commitOid": "1"}
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    Hub.asked, Hub.files = [], {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        yield Hub
        server.shutdown()


def test_model_is_pushed_as_it_is(hub, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    settings = TrainSettings(push_to_hub=True, hub_model_id="me/tiny", hub_private_repo=True)
    repository = open_repository(settings, Path("runs/mfpo"))
    assert repository == "me/tiny"
    push(tmp_path, repository, settings)
    path, created = hub.asked[0]
    assert path == "/api/repos/create"
    assert created.items() >= {"name": "tiny", "organization": "me", "visibility": "private"}.items()
    assert hub.files == {"model.safetensors": b"weights", "config.json": b"{}"}


def test_repository_that_cannot_be_made_is_told_before_the_training(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(MfpoError, match=r"push_to_hub: cannot write to tiny on the Hub .* log in with `hf auth login`"):
        open_repository(TrainSettings(push_to_hub=True), Path("runs/tiny"))


def test_a_run_opens_its_repository_first_and_pushes_its_model(tiny_llava, preference_data, tmp_path, monkeypatch):
    done, out = [], tmp_path / "run"
    monkeypatch.setattr("mfpo.train.run.open_repository", lambda settings, out: done.append(out.exists()) or "me/tiny")
    monkeypatch.setattr("mfpo.train.run.push", lambda model, name, settings: done.append((name, model, model.exists())))
    run(preference_data, tiny_llava, out, TrainSettings(method="dpo", max_steps=1, batch_size=4, push_to_hub=True))
    assert done == [False, ("me/tiny", out / "model", True)]


def test_a_push_that_fails_says_how_to_push_later(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("mfpo.train.push.HfApi.upload_folder", fails)
    with pytest.raises(MfpoError, match=r"could not be pushed \(no route\); .* me/tiny .* --revision v1"):
        push(tmp_path, "me/tiny", TrainSettings(push_to_hub=True, hub_revision="v1"))
