"""The command `mfpo reproduce`: which experiments run, with what seeds, and what their pages say."""

import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from mfpo.cli import main
from mfpo.errors import SettingError
from mfpo.study import NAMES
from mfpo.study.experiments import load_experiments
from mfpo.study.results import Result, Table
from mfpo.study.statistics import Estimate
from mfpo.study.study import NotOnScale

EXPERIMENTS = load_experiments()


def reproduce(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mfpo", "reproduce", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
    return int(stopped.value.code or 0)


@pytest.fixture
def experiments(monkeypatch) -> dict[str, list[int]]:
    """Three experiments in place of the study's; what is returned are the seeds that each was run with."""
    ran: dict[str, list[int]] = {}

    def table(study):
        ran["table1"] = list(study.seeds)
        return Result("Table 1", Table({"base": {"chair_s": Estimate(1.0, None, 0.5, 1.5, 1)}}, {"chair_s": "CHAIR_s"}))

    def rates(study):
        ran["rates"] = [*study.seeds, study.scale.scenes]
        return table(study)

    def lacks(study):
        raise NotOnScale("table2 needs what is not here")

    for name in list(EXPERIMENTS):
        monkeypatch.delitem(EXPERIMENTS, name)
    for name, experiment in {"table1": table, "table2": lacks, "rates": rates}.items():
        monkeypatch.setitem(EXPERIMENTS, name, experiment)
    return ran


def test_kept_scores_make_the_page_of_the_docs_without_training(tmp_path, monkeypatch):
    monkeypatch.setattr("mfpo.study.picturebook.PictureBookScale.score", lambda *given: pytest.fail("scored again"))
    monkeypatch.setattr("mfpo.study.study.train", lambda *given: pytest.fail("trained again"))
    docs = Path(__file__).parents[2] / "docs" / "reproduce"
    with ZipFile(docs / "scores.zip") as kept:
        kept.extractall(tmp_path)
    assert reproduce("table7", "--seeds", "3", "--out", str(tmp_path)) == 0
    shown = [(folder / "table7.md").read_text().partition("```")[0] for folder in (docs, tmp_path / "pages")]
    assert shown[0] == shown[1]


def test_the_names_are_those_of_the_experiments():
    assert sorted(EXPERIMENTS) == sorted(NAMES)


def test_all_is_what_the_scale_has_and_says_what_it_leaves_out(experiments, tmp_path, capsys):
    assert reproduce("all", "--seeds", "2", "--first-seed", "3", "--out", str(tmp_path)) == 0
    assert experiments == {"table1": [3, 4]}
    assert "table2 is left out: table2 needs what is not here" in capsys.readouterr().out.replace("\n", " ")
    page = (tmp_path / "pages" / "table1.md").read_text()
    assert f"mfpo reproduce table1 --out {tmp_path} --seeds 2 --first-seed 3\n" in page
    assert "seeds 3, 4" in page
    assert (tmp_path / "pages" / "html" / "table1.html").exists()


def test_a_page_names_the_command_that_makes_it_alone(experiments, tmp_path):
    assert reproduce("rates", "table1", "--out", str(tmp_path)) == 0
    for name in ("rates", "table1"):
        assert f"mfpo reproduce {name} --out {tmp_path}\n" in (tmp_path / "pages" / f"{name}.md").read_text()
    assert experiments["rates"] == [90, 500]


def test_the_command_keeps_an_option_that_is_called_like_an_experiment(experiments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert reproduce("--out", "table1", "--seeds", "3", "rates", "table1") == 0
    options = {"rates": "--out table1", "table1": "--out table1 --seeds 3"}  # the seed of rates is their own
    for name, given in options.items():
        assert f"mfpo reproduce {name} {given}\n" in (tmp_path / f"table1/pages/{name}.md").read_text()


def test_all_may_stand_beside_others(experiments, tmp_path, capsys):
    assert reproduce("all", "rates", "table1", "--out", str(tmp_path)) == 0
    assert list(experiments) == ["table1", "rates"]
    assert "table2 is left out" in capsys.readouterr().out
    assert "scored on 1000 scenes (existence on 150, OPERA on 200)" in (tmp_path / "pages" / "table1.md").read_text()


def test_asked_for_by_name_what_the_scale_lacks_is_an_error_but_the_others_are_made(experiments, tmp_path, capsys):
    assert reproduce("table2", "table1", "--out", str(tmp_path)) == 1
    assert "table2 is left out: table2 needs what is not here" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "pages" / "table1.md").exists()


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_file_is_no_folder_of_results(experiments, out, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert reproduce("table1", "--out", str(tmp_path / out)) == 1
    assert "is a file; give a folder" in " ".join(capsys.readouterr().err.split())
    assert not experiments


def test_a_mistake_in_the_last_experiment_is_told_before_the_first(experiments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mfpo.study.real.RealScale", lambda folder, settings: object())
    (tmp_path / "real.yaml").write_text("{amber: a, amber_images: b}")
    named = ("--scale", "paper", "--config", str(tmp_path / "real.yaml"))
    assert reproduce("table1", "rates", *named, "--out", str(tmp_path)) == 1
    assert "rates exist only for the picture book" in " ".join(capsys.readouterr().err.split())
    assert not experiments


def test_a_wrong_setting_is_never_left_out(experiments, tmp_path, monkeypatch, capsys):
    def wrong(study):
        raise SettingError("lora_rnk is no setting")

    monkeypatch.setitem(EXPERIMENTS, "table2", wrong)
    assert reproduce("all", "--out", str(tmp_path)) == 1
    assert "lora_rnk is no setting" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["table12"], "no experiment is named 'table12'; did you mean 'table"),
        (["table1", "--seeds", "3", "--first-seed", "88"], "seeds must stay below 90"),
        (["rates", "--seeds", "2"], "rates are chosen with a seed of their own"),
        (["table1", "--scale", "paper"], "--scale must be picturebook without --config, or paper with it"),
        (["table1", "--scale", "paper", "--config", "real.yaml", "--pairs", "600"], "--pairs are for the picture book"),
    ],
)
def test_mistakes_are_told(experiments, tmp_path: Path, capsys, arguments, said):
    assert reproduce(*arguments, "--out", str(tmp_path)) == 1
    assert said in " ".join(capsys.readouterr().err.split())
