"""`mfpo probe` as a user types it."""

import sys

import pytest

from mfpo.cli import main
from mfpo.cli.console import ROWS_SET_ASIDE


@pytest.fixture
def probe(monkeypatch, capsys):
    """The exit status, stdout and stderr of `mfpo probe ...`."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mfpo", "probe", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


def test_records_set_aside_are_counted_and_end_with_their_own_status(probe, tiny_llava, mixed, tmp_path):
    out = tmp_path / "out"
    status, printed, _ = probe("attention", mixed, "--model", tiny_llava, "--out", out, "drawn=1")
    assert status == ROWS_SET_ASIDE
    assert "Records: 5." in printed
    assert "Set aside: 4" in printed
    assert "1 x none of its keywords has a region" in printed
    assert (out / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["distortion", "{data}", "--model", "{model}", "--out", "{tmp}/out", "steps=0,x"],
            "steps is '0,x', but must be numbers separated by commas",
        ),
        (["distortion", "{data}", "--model", "{model}", "--out", "{tmp}/out", "steps=1000"], "step 1000"),
        (["distortion", "{data}", "--model", "{model}", "--out", "{tmp}/out", "limit=0"], "limit is 0"),
        (["distortion", "{data}", "--model", "{model}", "--model", "{model}", "--out", "{tmp}/out"], "given twice"),
        (["distortion", "{data}", "--model", "{tmp}", "--out", "{tmp}/out"], "no model there"),
        (["attention", "{data}", "--model", "{model}", "--out", "{tmp}"], "exists already"),
        (["attention", "{tmp}", "--model", "{model}", "--out", "{tmp}/out"], "no Parquet shards"),
        (["attention", "{data}", "--model", "{model}", "--out", "{tmp}/out", "at=after"], "at is 'after'"),
        (["distortion", "{data}", "--model", "{model}", "--out", "{tmp}/out", "schedule=square"], "'square'"),
        (["rewards", "{tmp}", "--out", "{tmp}/out", "windw=2"], "did you mean 'window'"),
        (["rewards", "window=2", "--out", "{tmp}/out"], "no run is given"),
        (["rewards", "{tmp}", "--out", "{tmp}/out"], "metrics.jsonl does not exist"),
    ],
)
def test_mistakes_are_one_line_that_names_them(probe, tiny_llava, good, tmp_path, arguments, words):
    places = {"data": good, "model": tiny_llava, "tmp": tmp_path}
    status, _, err = probe(*(argument.format(**places) for argument in arguments))
    assert status == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not (tmp_path / "out").exists()
