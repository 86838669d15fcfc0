"""A small demo, and one that goes on from its half: every figure is there, and is the same again."""

import json
import os
import shutil

import pytest
from rich.console import Console

from mfpo import demo as module
from mfpo.cli.demo import demo as command
from mfpo.demo import METHODS, demo, score
from mfpo.demo_settings import DemoSettings
from mfpo.picturebook.book import FIGURES

SETTINGS = DemoSettings(pairs=6, scenes=4, dependence_pairs=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a demo, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    console = Console(record=True, width=120)

    def copy_and_score(*given, **options):
        if not (half := folder.with_name("half")).exists():
            shutil.copytree(folder.with_name("run.partial"), half)
        return score(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "score", copy_and_score)
        demo(folder, SETTINGS, console=console)
    return folder, console.export_text()


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_results_hold_every_figure_of_every_model(run):
    models = results(run[0])["models"]
    assert set(models) == {"base", *METHODS}
    for figures in models.values():
        assert set(figures) == set(FIGURES)
        assert 0 <= figures["chair_i"] <= figures["chair_s"] <= 100
        assert 0 <= figures["existence_accuracy"] <= 100


def test_models_differ(run):
    models = results(run[0])["models"]
    assert len({figures["image_dependence"] for figures in models.values()}) == len(models)


def test_it_prints_how_far_it_is_the_table_and_the_page(run):
    folder, printed = run
    assert "1/8" in printed
    assert "8/8" in printed
    assert "CHAIR_s" in printed
    assert "report.html" in printed
    assert (folder / "report.html").exists()
    assert not folder.with_name("run.partial").exists()


def test_a_killed_demo_goes_on_and_has_the_same_figures(run, tmp_path, monkeypatch):
    """Killed before it asked: pairs, ranking and models are not made again."""
    shutil.copytree(run[0].with_name("half"), tmp_path / "run.partial")
    for name in ("build", "rank", "train"):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("made again"))
    demo(tmp_path / "run", SETTINGS, console=Console(quiet=True))
    assert results(tmp_path / "run") == results(run[0])


def test_its_threads_sleep_while_they_wait_unless_told_otherwise(tmp_path, monkeypatch):
    policies = []
    monkeypatch.setattr("mfpo.demo.demo", lambda *_, **__: policies.append(os.environ["OMP_WAIT_POLICY"]))
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    command(tmp_path / "run")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    command(tmp_path / "run")
    assert policies == ["ACTIVE", "PASSIVE"]
