"""The commands as a user types them: what they say, and what they do with bad input."""

import json
import os
import re
import subprocess
import sys

import pytest
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track

from mfpo.answer.decoders import decoder
from mfpo.cli import app, main
from mfpo.cli.console import ROWS_SET_ASIDE
from mfpo.errors import MfpoError


def run(monkeypatch, capsys, *arguments):
    """The exit status, stdout and stderr of a command."""
    monkeypatch.setattr(sys, "argv", ["mfpo", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    return stopped.value.code or 0, captured.out, captured.err


@pytest.fixture
def mfpo(monkeypatch, capsys):
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


@pytest.fixture
def photos(tmp_path):
    """A folder with one good image, and one that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (32, 32), "red").save(folder / "red.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def write_rows(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


GOOD = {"id": "good", "image": "red.png", "question": "What is it?", "chosen": "A red wall.", "rejected": "A dog."}


def test_no_argument_says_what_there_is(mfpo):
    status, out, _ = mfpo()
    assert status == 0
    for command in ("demo", "build", "inspect", "rank", "train", "answer", "eval", "report", "picturebook"):
        assert command in out


def commands(command, *names):
    """The names of each command, those of groups and benchmarks too."""
    if not hasattr(command, "list_commands"):
        return [" ".join(names)]
    context = typer.Context(command)
    groups = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
    return [line for name, one in groups for line in commands(one, *names, name)]


COMMANDS = commands(typer.main.get_command(app))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(mfpo, command):
    assert {"build", "eval chair", "probe rewards", "picturebook draw"} <= set(COMMANDS)
    status, out, _ = mfpo(*command.split(), "--help")
    assert status == 0
    assert f"mfpo {command}" in re.search(r"Example:(.*)", out, re.DOTALL)[1]


def test_bad_rows_are_set_aside_counted_and_named(mfpo, tmp_path, photos):
    rows = [GOOD, GOOD | {"id": "missing image", "image": "blue.png"}, "{broken"]
    source = write_rows(tmp_path / "pairs.jsonl", rows)
    out = tmp_path / "built"
    status, printed, _ = mfpo("build", source, "--images", photos, "--corruption", "global", "--out", out)
    assert status == ROWS_SET_ASIDE
    assert "2 of 3 rows set aside" in printed
    assert len((out / "rejected_rows.jsonl").read_text().splitlines()) == 2


ANSWER = ["answer", "{tmp}/questions.jsonl", "--model", "picturebook", "--images", "{tmp}", "--out", "{tmp}/out"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "{tmp}/none.jsonl", "--out", "{tmp}/out"], "none.jsonl"),
        (["build", "{tmp}/empty.jsonl", "--out", "{tmp}/out"], "empty"),
        (["build", "picturebook:many", "--out", "{tmp}/out"], "picturebook:600"),
        (["build", "picturebook:2", "--out", "{tmp}"], "exists already"),
        (["build", "picturebook:2", "--out", "{tmp}/out", "topk=3"], "did you mean 'top_k'"),
        (["build", "picturebook:2", "--out", "{tmp}/out", "top_k=0"], "top_k is 0"),
        (["build", "picturebook:2", "--out", "{tmp}/out", "--regions", "sam"], "no regions are named 'sam'"),
        (["build", "owner/unknown", "--out", "{tmp}/out", "--engine", "spark"], "no engine is named 'spark'"),
        (["build", "owner/unknown", "--out", "{tmp}/out", "--workers", "0"], "workers is 0"),
        (["rank", "{tmp}", "--model", "picturebook", "--out", "{tmp}/out"], "no Parquet shards"),
        (["train", "{tmp}", "--model", "picturebook", "--out", "{tmp}/out", "--method", "ppo"], "'ppo'"),
        (["train", "{tmp}", "--model", "picturebook", "--out", "{tmp}/out", "beta=low"], "must be a number"),
        (["train", "{tmp}", "--model", "picturebook", "--out", "{tmp}/out", "optm=adafactor"], "did you mean 'optim'"),
        (
            ["train", "{tmp}", "--model", "picturebook", "--out", "{tmp}/out", "data_seed=1"],
            "not a setting: the seed alone",
        ),
        (["answer", "{tmp}/questions.jsonl", "--model", "{tmp}", "--images", "{tmp}", "--out", "{tmp}/a"], "no model"),
        ([*ANSWER, "--decode", "dola"], "greedy, vcd, opera"),
        ([*ANSWER, "--decode", "vcd", "cd_alhpa=1"], "did you mean 'cd_alpha'"),
        ([*ANSWER, "--decode", "vcd", "noise_step=1000"], "from 0 to 999"),
        ([*ANSWER, "--decode", "opera", "num_beams=1"], "must be 2 or more"),
        ([*ANSWER, "cd_alpha=1"], "cd_alpha is 1, but decode greedy has no cd_alpha"),
        ([*ANSWER, "--decode", "vcd", "--endpoint", "http://localhost:1/v1"], "decode is vcd, but --endpoint"),
        ([*ANSWER, "--decode", "opera", "--engine", "vllm"], "decode is opera, but --engine vllm"),
        ([*ANSWER, "max_new_tokens=0"], "max_new_tokens is 0, but must be 1 or more"),
        ([*ANSWER, "btch_size=1"], "did you mean 'batch_size'"),
        (["eval", "chair", "{tmp}/none.jsonl", "--annotations", "{tmp}/none.json"], "none.json"),
        (
            ["eval", "chair", "{tmp}/questions.jsonl", "--annotations", "{tmp}/questions.jsonl", "--judge", "m"],
            "no judge",
        ),
        (["report", "{tmp}"], "neither"),
        (["settings", "cooking"], "build, pairs, rank, train"),
    ],
)
def test_mistakes_are_one_line_that_names_them(mfpo, tmp_path, photos, arguments, words):
    (tmp_path / "empty.jsonl").write_text("")
    (photos / "red.png").rename(tmp_path / "red.png")
    write_rows(tmp_path / "questions.jsonl", [{"question_id": 1, "image": "red.png", "text": "What is it?"}])
    status, _, err = mfpo(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert status == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not (tmp_path / "out").exists()


LIGHT = """
import json, sys
from mfpo.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["mfpo", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 1, arguments
    heavy = {"torch", "transformers", "datasets", "textblob", "matplotlib"} & sys.modules.keys()
    assert not heavy, (arguments, heavy)
"""


def test_a_mistake_is_told_before_anything_heavy_is_imported(tmp_path):
    """Wrong paths, keys and names, of each command: torch alone takes longer than anyone likes to wait."""
    out = ["--out", str(tmp_path / "out")]
    data = tmp_path / "data"
    data.mkdir()
    (data / "train-00000.parquet").write_bytes(b"looked into later")
    asked = ["answer", str(data / "train-00000.parquet"), "--images", str(tmp_path), *out]
    commands = [
        ["build", "none.jsonl", *out],
        ["build", str(data), "--images", "none", *out],
        ["build", str(data), "--regions", "coco=none.json", *out],
        ["build", str(data), *out, "topk=3"],
        ["pairs", "none", "--model", "picturebook", *out],
        ["pairs", str(data), "--model", "picturebook", *out],
        ["pairs", str(data), "--model", "none", "--check", "coco=none.json", *out],
        ["pairs", "picturebook:4", "--model", "picturebook", "--check", "judge", *out, "smaples=3"],
        ["pairs", "picturebook:4", "--model", "picturebook", "--check", "judge", *out, "concurrency=3"],
        ["rank", "none", "--model", "picturebook", *out],
        ["rank", str(data), "--model", "none", *out],
        ["rank", str(data), "--model", "picturebook", *out, "levls=3"],
        ["train", "none", "--model", "picturebook", *out],
        ["train", str(data), "--model", "none", *out],
        ["train", str(data), "--model", "picturebook", *out, "lora_rnk=3"],
        ["train", str(data), "--model", "picturebook", *out, "weight_deca=0.1"],
        ["train", str(data), "--model", "picturebook", *out, "fp16=true"],
        ["train", str(data), "--model", "picturebook", *out, "eval=none"],
        ["train", str(data), "--model", "picturebook", *out, "--method", "ppo"],
        ["answer", "none.jsonl", "--images", str(tmp_path), "--model", "picturebook", *out],
        [*asked, "--model", "none"],
        [*asked, "--model", "picturebook", "--decode", "vcd", "cd_alhpa=1"],
        ["eval", "chair", "none.jsonl", "--annotations", "none.json"],
        ["eval", "amber", str(data / "train-00000.parquet"), "--annotations", "none"],
        ["eval", "chiar", "none.jsonl"],
        ["eval", "chair", str(data), "--annotations", str(data), "allow_mising=true"],
        ["eval", "mmhal", str(data), "--annotations", str(data), "--judge", "m", "atempts=2"],
        ["inspect", "none"],
        ["report", "none"],
        ["reproduce", "tabel1", *out],
        ["reproduce", "table1", "--scale", "paper", "--config", "none.yaml", *out],
        ["settings", "trian"],
    ]
    ran = subprocess.run([sys.executable, "-c", LIGHT, json.dumps(commands)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("error: ") == ran.stderr.count("\n") == len(commands)


def test_settings_lists_what_has_settings(mfpo):
    status, out, _ = mfpo("settings")
    assert status == 0
    assert {"build", "rank", "train", "vcd", "opera", "judge", "pretrain"} <= set(re.findall(r"[\w-]+", out))


def test_settings_of_build_have_those_of_the_picture_books_own_corruptions():
    # In a process of its own, as other tests here import these corruptions.
    command = [sys.executable, "-m", "mfpo.cli", "settings", "build"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, _, shown = listed.partition("with corruption=counterfactual also")
    assert {"edit", "edits"} <= set(re.findall(r"\w+", shown))


def test_a_wrong_key_names_the_file_that_it_stands_in(mfpo, tmp_path):
    (tmp_path / "my.yaml").write_text("epochs: 1\nlora_rnk: 8\n")
    status, _, err = mfpo("train", "data", "--model", "m", "--out", "o", "--config", tmp_path / "my.yaml", "bta=1")
    assert status == 1
    assert f"no setting is named 'lora_rnk' in {tmp_path / 'my.yaml'}, did you mean 'lora_rank'?" in err
    assert "no setting is named 'bta', did you mean 'beta'?" in err


def test_a_question_about_a_missing_image_is_refused_before_the_model_is_loaded(mfpo, tmp_path):
    questions = write_rows(tmp_path / "q.jsonl", [{"question_id": 1, "image": "blue.png", "text": "What is it?"}])
    model = tmp_path / "llava"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llava"}')
    (model / "model.safetensors").write_bytes(b"")
    status, _, err = mfpo("answer", questions, "--model", model, "--images", tmp_path, "--out", tmp_path / "a.jsonl")
    assert status == 1
    assert "line 1" in err
    assert "blue.png" in err


QUESTION = {"question_id": 1, "image": "red.png", "text": "What is it?"}


def test_a_killed_answer_goes_on_where_it_was(mfpo, tmp_path, photos):
    questions = [QUESTION | {"question_id": number} for number in range(3)]
    asked = []

    @decoder("killed")
    def killed(model, processor, questions, images, max_new_tokens):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.extend(question["question_id"] for question in questions)
        return ["A wall.\u2028Red." for _ in questions]

    out = tmp_path / "a.jsonl"

    def ask(rows):
        write_rows(tmp_path / "q.jsonl", rows)
        ends = ("--model", "picturebook", "--images", photos, "--out", out, "--decode", "killed", "batch_size=1")
        return mfpo("answer", tmp_path / "q.jsonl", *ends)[0]

    assert ask(questions) == 130
    asked.append("killed")
    assert ask(questions) == 0
    assert asked == ["0", "1", "killed", "2"]


@pytest.mark.parametrize(
    ("name", "override", "settings"),
    [
        (
            "vcd",
            "sample=false",
            {"cd_alpha": 1.0, "cd_beta": 0.1, "noise_step": 500, "sample": False, "seed": 0},
        ),
        (
            "opera",
            "num_beams=2",
            {"num_beams": 2, "scale_factor": 50.0, "threshold": 15, "num_attn_candidates": 5, "penalty_weight": 1.0},
        ),
    ],
)
def test_decoding_is_chosen_by_name_and_its_settings_stand_in_each_answer(
    mfpo, tmp_path, photos, name, override, settings
):
    write_rows(tmp_path / "q.jsonl", [QUESTION | {"question_id": number} for number in range(2)])
    ends = (
        "--model",
        "picturebook",
        "--images",
        photos,
        "--out",
        tmp_path / "a.jsonl",
        "--max-new-tokens",
        5,
    )
    status, _, err = mfpo("answer", tmp_path / "q.jsonl", *ends, "--decode", name, override)
    assert status == 0, err
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [answer["decode"] for answer in answers] == [{"strategy": name} | settings | {"max_new_tokens": 5}] * 2
    assert all(answer["text"] for answer in answers)
    status, out, _ = mfpo("settings", name)
    assert status == 0
    assert all(setting in out for setting in settings)


def test_progress_bars_end_above_the_error(mfpo, monkeypatch):
    def broken():
        rows = track(range(3), "building", console=Console(stderr=True))
        next(iter(rows))
        raise MfpoError("no space")

    monkeypatch.setattr("mfpo.cli.app", broken)
    _, _, said = mfpo("build")
    assert "building" in said
    assert said.endswith("\nerror: no space\n")


def test_verbose_shows_the_traceback(tmp_path):
    command = [sys.executable, "-m", "mfpo.cli", "-v", "report", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "Traceback" in finished.stderr


def test_a_torchvision_of_another_torch_is_one_line(tmp_path, photos):
    """As PyPI's is beside a torch for CPUs: whatever is imported from transformers raises."""
    package = tmp_path / "site" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    about = package.with_name("torchvision-0.28.0.dist-info")
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "image": "red.png", "text": "What is it?"}\n')
    arguments = ["answer", "q.jsonl", "--model", "picturebook", "--images", photos, "--out", "answers.jsonl"]
    finished = subprocess.run(
        [sys.executable, "-m", "mfpo.cli", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert finished.stderr.startswith(
        "error: the torchvision installed here cannot be imported ('operator torchvision::nms does not exist'); install"
    )
    assert finished.stderr.count("\n") == 1


def test_ctrl_c_is_one_line_and_leaves_nothing_half_done(mfpo, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mfpo.picturebook.book.draw_scene", interrupted)
    status, _, err = mfpo("picturebook", "draw", "--count", "2", "--out", tmp_path / "out")
    assert (status, err) == (130, "stopped\n")
    assert not (tmp_path / "out").exists()
