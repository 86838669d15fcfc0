"""`mfpo build` from the shell: killed and started again beside its output, two at a time, its engines and options."""

import json
import os
import signal
import sys
import time
from typing import Annotated

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fixtures.processes import command, start
from mfpo.build.corruptions import corruption
from mfpo.build.noise import share
from mfpo.build.regions import segmenter
from mfpo.cli import main
from mfpo.masks import encode_mask
from mfpo.records import Region
from mfpo.settings import about
from mfpo.sources import source
from mfpo.sources.rows import read_answer, read_prompt
from mfpo.sources.table import Pair, TableSource

DOG = np.zeros((48, 64), dtype=bool)
DOG[10:30, 20:50] = True


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with pairs.jsonl (400 rows on four photos), photos and instances.json in it."""
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    images, annotations = [], []
    for number in range(4):
        name = f"p{number}.png"
        Image.fromarray(random.integers(0, 256, (*DOG.shape, 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
        images.append({"id": number, "file_name": name, "height": 48, "width": 64})
        annotations.append({"image_id": number, "category_id": 18, "segmentation": encode_mask(DOG)})
    categories = [{"id": 18, "name": "dog"}]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    rows = [
        {"id": f"r{i}", "image": f"p{i % 4}.png", "question": "?", "chosen": "A dog sits.", "rejected": "A cat."}
        for i in range(400)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build(*arguments, source="pairs.jsonl"):
    common = ["build", source, "--images", "photos", "--regions", "coco=instances.json", "shard_size=8"]
    return [*common, *map(str, arguments)]


@pytest.fixture
def here(folder, monkeypatch, capsys):
    """Runs it in this process: its imports take longer than a build does."""

    def run_here(*arguments, **source):
        monkeypatch.setattr(sys, "argv", ["mfpo", *build(*arguments, **source)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run_here


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "summary.json"}


def killed_at(shards, out):
    """Start a build and kill it when that many shards are done; returns their notes and times."""
    process = start(command, *build("--out", out))
    notes = {}
    while process.is_alive() and len(notes) < shards:
        notes = {path: path.stat().st_mtime_ns for path in out.with_suffix(".partial").glob("train-*.json")}
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return notes


def test_a_killed_build_goes_on_beside_its_output(folder, here):
    assert here("--out", "whole")[0] == 0
    notes = killed_at(5, folder / "out")
    (folder / "notes.txt").write_text("a file that has nothing to do with it")
    status, _, _ = here("--out", "out")
    assert status == 0
    assert content(folder / "out") == content(folder / "whole")
    assert len(notes) >= 5
    made = max(path.stat().st_mtime_ns for path in (folder / "out").glob("*.parquet"))
    first = sorted((folder / "out").glob("*.parquet"))[0].stat().st_mtime_ns
    assert first <= min(notes.values()) < made, "the first shard was done again"


def test_two_builds_into_one_folder(folder, here):
    process = start(command, *build("--out", "out"))
    while process.is_alive() and not list(folder.glob("out.partial/train-*.json")):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGSTOP)
    status, _, err = here("--out", "out")
    os.kill(process.pid, signal.SIGCONT)
    assert (status, err) == (
        1,
        "error: out.partial: another run is writing it; wait for that one, or write elsewhere\n",
    )
    process.join()
    assert process.exitcode == 0
    assert here("--out", "whole")[0] == 0
    assert content(folder / "out") == content(folder / "whole")


def test_check_regions_prints_the_mapping_accuracy(folder, here):
    status, out, _ = here("--check-regions", "instances.json")
    assert status == 0
    assert "400 (100.0 %)" in out
    assert not (folder / "out").exists()


@pytest.fixture
def repository(folder):
    """`folder`/repo, as `push_to_hub` writes it: 3 rows in train, 2 in test."""
    (folder / "repo" / "data").mkdir(parents=True)
    rows = (folder / "pairs.jsonl").read_text().splitlines(keepends=True)
    for name, lines in (("train", rows[:3]), ("test", rows[3:5])):
        (folder / "repo" / "data" / f"{name}-00000-of-00001.jsonl").write_text("".join(lines))
    return folder


def built_ids(out):
    return list(datasets.Dataset.from_parquet(str(out / "train-00000.parquet"))["id"])


def test_of_a_repository_train_is_built_or_the_split_that_is_chosen(repository, here):
    status, out, _ = here("--out", "out", source="repo")
    assert (status, built_ids(repository / "out")) == (0, ["r0", "r1", "r2"])
    assert "left out: split test (1 file); choose with split=NAME or subset=NAME" in out
    assert json.loads((repository / "out" / "summary.json").read_text())["left_out"] == ["split test (1 file)"]
    assert here("--out", "other", "split=test", source="repo")[0] == 0
    assert built_ids(repository / "other") == ["r3", "r4"]
    assert json.loads((repository / "other" / "made_by.json").read_text())["settings"]["split"] == "test"
    assert "choose split=test or split=train" in here("--out", "third", "split=val", source="repo")[2]


def test_what_was_begun_of_another_split_is_not_gone_on_with(repository, here):
    assert here("--out", "out", source="repo")[0] == 0
    (repository / "out").rename(repository / "out.partial")
    (repository / "out.partial" / "train-00000.json").write_text("a note that would be read")
    _, _, err = here("--out", "out", "split=test", source="repo")
    assert "out.partial belongs to a run with other settings:" in err
    assert "split was None and is 'test'" in err
    assert err.count("\n") == 1


def test_preview_is_a_picture(folder, here):
    assert here("--preview", "r1", "--out", "strip.png")[0] == 0
    assert Image.open(folder / "strip.png").width > 200
    assert here("--preview", "r1", "--out", "strip.png")[2].startswith("error: strip.png exists already")
    assert "has the id 'r1000'" in here("--preview", "r1000", "--out", "other.png")[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "/proc/x"], "/proc/x.partial: cannot be made"),
        (["--out", "out", "--workers", "0"], "workers is 0"),
        (["--out", "out", "--engine", "dask"], "no engine is named 'dask'"),
        (["--out", "out", "--seed", 2**63], "must be below 2^63"),
        (
            ["--out", "out", "corruption=smear"],
            "no corruption is named 'smear'; there are region, global, random, crop",
        ),
        ([], "--out is missing"),
        (["--preview", "r1", "--out", "nowhere/strip.png"], "nowhere: no such folder"),
        (["--out", "out", "split=test"], "pairs.jsonl: is one file, of split train"),
        (["--out", "out", "spilt=test"], "no setting is named 'spilt', did you mean 'split'?"),
        (["--out", "out", "top_k=" + "x" * 5000], "top_k is '" + "x" * 80 + "...', but must be a whole number"),
    ],
)
def test_mistakes_are_one_line(here, arguments, words):
    status, _, err = here(*arguments)
    assert status == 1
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["picturebook:2", "--images", "photos"], "the picture book brings its images and needs no format; leave out"),
        (["picturebook-context:2", "--format", "trl"], "the picture book brings its images and needs no format"),
        (["picturebook:2", "split=test"], "the picture book has none; leave them out"),
        (["picturebook:x"], "picturebook:x: 'x' is not a number of scenes; write picturebook:600"),
        (["pairs.jsonl", "--preview", "r1"], "--out is missing; give the image file to write"),
        (["pairs.jsonl"], "--out is missing; give the folder to write"),
    ],
)
def test_mistakes_with_the_source_and_the_output(folder, capsys, monkeypatch, arguments, words):
    out = ["--out", "out"] if arguments[0].startswith("picturebook") else []
    monkeypatch.setattr(sys, "argv", ["mfpo", "build", *arguments, *out])
    with pytest.raises(SystemExit) as stopped:
        main()
    err = capsys.readouterr().err
    assert (stopped.value.code, err.count("\n")) == (1, 1), err
    assert words in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(here, monkeypatch):
    writer = pq.ParquetWriter
    # Closing the file would fail once more.
    full = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    monkeypatch.setattr(pq, "ParquetWriter", lambda where, *settings, **more: writer(full, *settings, **more))
    status, _, err = here("--out", "out")
    assert status == 1
    assert err.startswith("error: the disk is full")
    assert err.count("\n") == 1


@segmenter("left-half")
def left_half(where, settings, *, wide: Annotated[int, about("columns", least=1)] = 8):
    mask = np.zeros(DOG.shape, dtype=bool)
    mask[:, :wide] = True

    def find(searches):
        return [[Region(keyword=where, score=1.0, mask=encode_mask(mask), image=s.number)] for s in searches]

    return find


@corruption("painted", needs_regions=True)
def painted(pixels, mask, rng, settings, *, grey: Annotated[int, about("0 to 255", least=0, most=255)] = 0):
    return np.where(mask[..., None], np.uint8(grey), pixels), share(mask)


@source("two-answers")
class TwoAnswers(TableSource):
    columns = ("image", "asked", "best", "worst")
    images = "image"

    def pair(self, row):
        return Pair(read_prompt(row, "asked"), read_answer(row, "best"), read_answer(row, "worst"))


def test_a_source_a_segmenter_and_a_corruption_of_ones_own(folder, here):
    row = {"image": "p0.png", "asked": "?", "best": "A dog.", "worst": "A cat."}
    (folder / "mine.jsonl").write_text(json.dumps(row) + "\n")
    options = ["--regions", "left-half=dog", "corruption=painted", "wide=5", "grey=7"]
    status, _, err = here("--out", "out", *options, source="mine.jsonl")
    assert (status, err) == (0, "")
    (record,) = datasets.Dataset.from_parquet(str(folder / "out" / "train-00000.parquet"))
    assert record["regions"][0]["keyword"] == "dog"
    before, after = (np.asarray(record[name][0]) for name in ("images", "rejected_images"))
    assert (after[:, :5] == 7).all()
    np.testing.assert_array_equal(after[:, 5:], before[:, 5:])
    made_by = json.loads((folder / "out" / "made_by.json").read_text())
    assert (made_by["settings"]["wide"], made_by["settings"]["grey"]) == (5, 7)
    assert made_by["regions"].endswith("left_half.<locals>.find")
    assert "grey is 300, but must be from 0 to 255" in here("--out", "b", *options, "grey=300", source="mine.jsonl")[2]
    assert "grey is 7, but corruption region has no grey" in here("--out", "b", "grey=7", source="mine.jsonl")[2]
