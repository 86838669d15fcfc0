"""Every command and every Python example of the README and the docs, run on a few scenes of the picture book."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from mfpo.cli import app, main
from mfpo.picturebook import WEIGHTS
from mfpo.picturebook.book import draw_book
from mfpo.picturebook.instances import coco_instances
from mfpo.picturebook.scenes import make_scene
from mfpo.picturebook.source import PictureBookSource
from mfpo.records import answer_text

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# A real model takes a GPU and a download; the commands are the same with the one in the package. Less of everything.
SMALLER = {
    "llava-hf/llava-1.5-7b-hf": str(WEIGHTS),
    "picturebook:600": "picturebook:4",
    "rounds = 4": "rounds = 1",
    "--count 500": "--count 4",
    "steps=0,500,999": "steps=0,999 max_new_tokens=8",
    "entropy=semantic": "entropy=semantic samples=2 max_new_tokens=16",
    "lora_rank=128)": "lora_rank=4)",  # in Python
    "lora_rank=128": "lora_rank=4 epochs=1",
    "learning_rate=1e-4": "learning_rate=1e-4 epochs=1",
    'method="mfpo", ': 'method="mfpo", epochs=1, ',
    "TrainSettings(lora_rank=0)": "TrainSettings(lora_rank=0, epochs=1)",
}
# Each has a test of its own, with a smaller setting: make, the demo and the pretraining take minutes.
ELSEWHERE = ("make", "mfpo demo", "mfpo picturebook pretrain", "python benchmarks/")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page):
    lines = [line.partition(" #")[0].strip() for block in blocks(page, "sh") for line in block.splitlines()]
    return [line for line in lines if line]


def run(line, monkeypatch):
    for large, small in SMALLER.items():
        line = line.replace(large, small)
    arguments = shlex.split(line)
    if "--out" in arguments:
        out = Path(arguments[arguments.index("--out") + 1])
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True)
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code, f"`{line}` failed"


@pytest.fixture(scope="module", autouse=True)
def few_scenes_at_a_time():
    """The picture book samples captions of 64 scenes together, and the pages here want 4 pairs or 8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mfpo.picturebook.source._BATCH", 8)
        yield


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """The files that the docs call {pairs,rated,questions,pope}.jsonl, photos, instances.json and plugin.py."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(ROOT / "docs" / "plugin.py", folder)
    draw_book(folder / "photos", count=4)
    shutil.move(folder / "photos" / "captions.jsonl", folder / "questions.jsonl")
    shutil.move(folder / "photos" / "existence.jsonl", folder / "pope.jsonl")
    source = PictureBookSource(4)
    records = {f"scene-{row['scene']}.png": source.record(row, number) for number, row in enumerate(source)}
    rated = []
    with (folder / "pairs.jsonl").open("w") as file:
        for number, (name, record) in enumerate(records.items()):
            (folder / "photos" / name).write_bytes(record["images"][0]["bytes"])
            texts = {key: answer_text(record[key]) for key in ("chosen", "rejected")}
            texts["question"] = answer_text(record["prompt"])
            file.write(json.dumps({"id": f"photo-{number}", "image": name} | texts) + "\n")
            rated.append({"image": name, "asked": texts["question"], "best": texts["chosen"], "worst": "A unicorn."})
    (folder / "rated.jsonl").write_text("\n".join(map(json.dumps, rated)))
    seeds = {path.name: int(path.stem.removeprefix("scene-")) for path in (folder / "photos").glob("*.png")}
    instances = coco_instances({name: make_scene(seed) for name, seed in seeds.items()})
    (folder / "instances.json").write_text(json.dumps(instances))
    return folder


@pytest.fixture(scope="session")
def workspace(inputs):
    """The inputs, and what the README's own commands make of them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(inputs)
        for line in commands(ROOT / "README.md"):
            if not line.startswith(ELSEWHERE):
                run(line, monkeypatch)
        shutil.copy(inputs / "data" / "built" / "train-00000.parquet", inputs / "trl.parquet")
    return inputs


def to_run(page):
    """The commands of a page that the README does not have, whose own have made the workspace."""
    ran = commands(ROOT / "README.md")
    return [line for line in commands(page) if not line.startswith(ELSEWHERE) and line not in ran]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if to_run(page) or blocks(page, "python")], ids=lambda page: page.name
)
def test_commands_and_examples_of_a_page_run(page, workspace, tmp_path, monkeypatch):
    copy = tmp_path / "work"
    shutil.copytree(workspace, copy)
    monkeypatch.chdir(copy)
    for line in to_run(page):
        run(line, monkeypatch)
    for block in blocks(page, "python"):
        for large, small in SMALLER.items():
            block = block.replace(large, small)
        exec(compile(block, str(page), "exec"), {})


def test_there_are_commands_to_run():
    assert len(commands(ROOT / "README.md")) >= 6
    assert sum(len(commands(page)) for page in PAGES) >= 20


def test_every_block_of_the_docs_is_one_that_is_run():
    for page in PAGES:
        fences = [line for line in page.read_text().splitlines() if line.startswith("```")]
        assert set(fences[::2]) <= {"```", "```sh", "```python"}, page  # a plain block shows what is printed, or a file
        assert set(fences[1::2]) <= {"```"}, page
        indented = [line for line in page.read_text().splitlines() if line.startswith("    mfpo ")]
        assert not indented, f"{page.name}: put `{indented[0]}` into a block"


def shown_commands(page):
    """The commands in plain blocks, which need what the tests do not have: a GPU, a hub, a judge."""
    text = re.sub(r"^```(?:sh|python)\n.*?^```\n", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [
        line.replace("-m mfpo.cli", "mfpo")  # as accelerate launch and torchrun call it
        for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    return [line.partition(" #")[0] for line in lines if re.match(r"(\w+=\S+ |accelerate .*|torchrun .*)*mfpo ", line)]


@pytest.mark.parametrize("page", [page for page in PAGES if shown_commands(page)], ids=lambda page: page.name)
def test_commands_that_are_only_shown_are_at_least_understood(page):
    for line in shown_commands(page):
        arguments = shlex.split(line[line.index("mfpo ") :])[1:]
        command = get_command(app)
        while hasattr(command, "commands"):
            command = command.get_command(None, arguments.pop(0))
        command.make_context(line, arguments)  # raises for an option that there is not


def test_there_are_commands_that_are_only_shown():
    assert sum(len(shown_commands(page)) for page in PAGES) >= 10
    launched = [line for line in shown_commands(ROOT / "docs" / "scaling.md") if line.startswith(("accel", "torchrun"))]
    assert len(launched) >= 4
