"""A local HTTP server that speaks /v1/chat/completions and misbehaves when it is told to."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


class FakeServer:
    """Answers each request with `reply(prompt)`, after the `faults`, one a request, are used up."""

    def __init__(self, reply, faults=(), name="judge-1"):
        self.reply, self.faults, self.name = reply, deque(faults), name
        self.bodies, self.headers, self.times = [], [], []
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __enter__(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                fake.serve(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()

    def serve(self, request):
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self.lock:
            self.bodies.append(body)
            self.headers.append({name.lower(): text for name, text in request.headers.items()})
            self.times.append(time.monotonic())
            fault = self.faults.popleft() if self.faults else None
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            getattr(self, fault or "well")(request, body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up waiting
        finally:
            with self.lock:
                self.now -= 1

    def well(self, request, body):
        self.send(request, 200, self.completion(self.reply(body["messages"][-1]["content"])))

    def completion(self, text):
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {"id": "1", "object": "chat.completion", "created": 0, "model": self.name, "choices": [choice]} | {
            "usage": usage
        }

    def send(self, request, status, value, content_type="application/json", **headers):
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        request.send_response(status)
        for name, text in {"Content-Type": content_type, "Content-Length": str(len(data)), **headers}.items():
            request.send_header(name.replace("_", "-"), text)
        request.end_headers()
        request.wfile.write(data)

    def wait(self, request, body):
        self.send(request, 429, {"error": {"message": "slow down"}}, Retry_After="1.5")

    def server_error(self, request, body):
        self.send(request, 500, {"error": {"message": "oops"}})

    def cut(self, request, body):
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b'{"id": "1", "choi')
        request.wfile.flush()
        request.connection.close()

    def malformed(self, request, body):
        self.send(request, 200, '{"id": "1", "choices": [')

    def page(self, request, body):
        self.send(request, 200, "<html>welcome</html>", content_type="text/html")

    def no_choices(self, request, body):
        self.send(request, 200, self.completion("") | {"choices": []})

    def refusal(self, request, body):
        self.send(request, 200, self.completion("I'm sorry, but I can't assist with that."))

    def no_usage(self, request, body):
        self.send(request, 200, self.completion("7") | {"usage": None})

    def slow(self, request, body):
        time.sleep(1.0)
        self.well(request, body)

    def telltale(self, request, body):
        self.send(request, 401, {"error": {"message": f"bad key {request.headers['Authorization']}"}})

    def bad_request(self, request, body):
        self.send(request, 400, {"error": {"message": "too long"}})


@pytest.fixture(scope="session")
def fake_server() -> type[FakeServer]:
    """The class of the server: `with fake_server(reply, faults) as server`."""
    return FakeServer


@pytest.fixture
def interrupted() -> Callable[..., Any]:
    """`with interrupted(when)`: what stands there gets a Ctrl-C when `when()` is true, and must end with it at once."""

    @contextmanager
    def until(when: Callable[[], bool]) -> Iterator[None]:
        pressed = []

        def press() -> None:
            while not when():
                time.sleep(0.02)
            pressed.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=press, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            yield
        assert time.monotonic() - pressed[0] < 5

    return until


@pytest.fixture
def stub_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Opens a judge whose replies are `reply(prompt)`; its server is the judge's `server`."""
    pytest.importorskip("openai", reason="judges need the openai package: pip install 'mfpo[judge]'")
    from mfpo.evaluate.judge import Judge, JudgeSettings

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ExitStack() as open_servers:

        def open_judge(reply: Callable[[str], str], **settings: Any) -> Any:
            server = open_servers.enter_context(FakeServer(reply))
            judge = Judge(JudgeSettings(model="judge-1", endpoint=server.url, **settings), tmp_path / "verdicts.jsonl")
            judge.server = server
            return judge

        yield open_judge


@pytest.fixture(scope="session")
def served_llava(tiny_llava: Path) -> Iterator[tuple[str, str]]:
    """The address of the tiny LLaVA under `transformers serve`, and its name there."""
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"`transformers serve` needs {' and '.join(missing)}: pip install 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(tiny_llava), "--device", "cpu"]
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    try:
        for _ in range(240):
            assert server.poll() is None, "transformers serve ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", str(tiny_llava)
    finally:
        server.terminate()
        server.wait()
