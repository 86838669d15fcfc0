"""A small demo, left alone and killed: every figure is there, and is the same again."""

import json

import pytest
from rich.console import Console

from mfpo.demo import METHODS, DemoSettings, demo
from mfpo.picturebook.book import FIGURES

SETTINGS = DemoSettings(pairs=12, scenes=10, dependence_pairs=4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    console = Console(record=True, width=120)
    demo(folder / "one", SETTINGS, console=console)
    return folder, console.export_text()


def test_results_hold_every_figure_of_every_model(runs):
    results = json.loads((runs[0] / "one" / "results.json").read_text())
    assert set(results["models"]) == {"base", *METHODS}
    for figures in results["models"].values():
        assert set(figures) == set(FIGURES)
        assert 0 <= figures["chair_i"] <= figures["chair_s"] <= 100
        assert 0 <= figures["existence_accuracy"] <= 100


def test_models_differ(runs):
    models = json.loads((runs[0] / "one" / "results.json").read_text())["models"]
    assert len({figures["image_dependence"] for figures in models.values()}) == len(models)


def test_it_prints_how_far_it_is_the_table_and_the_page(runs):
    folder, printed = runs
    assert "1/8" in printed
    assert "8/8" in printed
    assert "CHAIR_s" in printed
    assert "report.html" in printed
    assert (folder / "one" / "report.html").exists()
    assert not (folder / "one.partial").exists()


def test_a_killed_demo_goes_on_and_has_the_figures_of_one_left_alone(runs, tmp_path, monkeypatch):
    """Killed while it asks: pairs, ranking and models are not made again, though they were made a second time."""
    import mfpo.demo as module

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "score", killed)
        with pytest.raises(KeyboardInterrupt):
            demo(tmp_path / "run", SETTINGS, console=Console(quiet=True))
    for name in ("build", "rank", "train"):
        monkeypatch.setattr(module, name, killed)
    demo(tmp_path / "run", SETTINGS, console=Console(quiet=True))
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == json.loads(
        (runs[0] / "one" / "results.json").read_text()
    )
