"""`benchmarks/gpu.py` with tiny shapes on a CPU, and its time budget."""

import json
import time
from importlib import import_module
from pathlib import Path

import pytest

from fixtures.processes import script, start

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_all_parts_run_with_tiny_shapes(tmp_path):
    log = tmp_path / "log.txt"
    process = start(script, BENCHMARKS / "gpu.py", "--tiny", "--out", tmp_path, log=log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert not [row for row in rows if {"skipped", "failed"} & row.keys()]
    logps = [row for row in rows if "family" in row]
    assert {row["dtype"] for row in logps} == {"float32", "bfloat16"}
    assert all(row["off"] < 1e-4 for row in logps if row["dtype"] == "float32")
    sides = [(row["shape"], row["side"]) for row in rows if "side" in row]
    assert len(set(sides)) == len(sides) == 7
    # Before the first step mfpo's loss is three times log 2, and dpo's is once, whoever computes it.
    losses = {"dpo": 0.6931, "trl_dpo": 0.6931}
    assert all(row["loss"] == pytest.approx(losses.get(row["side"], 2.0794), abs=1e-3) for row in rows if "side" in row)
    table = (tmp_path / "gpu.md").read_text()
    for title in ("log p", "A training step", "Answers", "Grounded SAM", "Building"):
        assert f"### {title}" in table
    assert "Not measured" not in table


def sleep():
    yield {"before": 1}
    time.sleep(60)


def broken():
    raise ValueError("no such kernel")
    yield


def test_a_part_that_does_not_fit_or_fails_is_said_to(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    gpu = import_module("gpu")
    now = time.monotonic()
    late, slow, wrong = (
        list(gpu.in_process(gpu.Part("part", run, least, 1.5), now + 30, tiny=True))
        for run, least in ((sleep, 40), (sleep, 1), (broken, 1))
    )
    assert time.monotonic() - now < 20
    assert [list(row) for row in late] == [["skipped"]]
    assert [list(row) for row in slow] == [["before"], ["failed"]]
    assert wrong == [{"failed": "ValueError: no such kernel"}]
    table = gpu.markdown("a GPU", [{"part": "part"} | row for row in (*late, *slow, *wrong)])
    assert "- part: stopped after 2 s" in table
    assert "- part: ValueError: no such kernel" in table
