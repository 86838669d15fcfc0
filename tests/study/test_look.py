"""The experiment `look`: its figures against counts by hand, its rows, its rates and what it says first."""

import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from mfpo.dataset import read_dataset
from mfpo.logprobs.cells import columns
from mfpo.models import load_model
from mfpo.picturebook import WEIGHTS
from mfpo.picturebook.books import BOOKS
from mfpo.picturebook.menus import menu
from mfpo.picturebook.pretrain_settings import ContextSettings
from mfpo.picturebook.scenes import make_scene
from mfpo.processors import load_processor
from mfpo.study.conflicts import counts, same_without_regions, unusual_colours
from mfpo.study.experiments import BASE
from mfpo.study.look import PLAIN, LookScale, look, look_bases, objectives, variants
from mfpo.study.picturebook import PictureBookScale
from mfpo.study.render import markdown
from mfpo.study.study import Study
from mfpo.study.trials import Data
from mfpo.train.objectives import OBJECTIVES

HABIT = BOOKS["picturebook"]


def test_a_model_that_sees_well_sees_unusual_colours_and_a_blind_one_goes_by_habit():
    scenes = [make_scene(seed) for seed in range(200_000_000, 200_000_012)]
    model, processor = load_model(WEIGHTS), load_processor(WEIGHTS)
    seen = unusual_colours(model, processor, HABIT, scenes)
    unusual = [[t for t in scene.things if t.colour != HABIT.usual_colours("park")[t.kind]] for scene in scenes]
    assert seen[:, 1].tolist() == [len(things) for things in unusual]
    assert seen[:, 0].sum() >= 0.9 * seen[:, 1].sum() > 5
    # Without what the tower sees, only habit is left, and it has no colours: about half, not nearly all.
    model.model.multi_modal_projector.linear_2.weight.data.zero_()
    assert unusual_colours(model, processor, HABIT, scenes)[:, 0].sum() < 0.8 * seen[:, 1].sum()


def test_the_second_book_has_the_colours_of_its_menus():
    usual = BOOKS["picturebook-context"].usual_colours("park")
    assert {kind: usual[kind] for kind, _, _ in menu("park", 0)} == {k: colour for k, colour, _ in menu("park", 0)}
    assert set(usual) == {kind for number in (0, 1) for kind, _, _ in menu("park", number)}


def test_a_caption_counts_right_when_it_names_as_many_things_as_there_are():
    scene = make_scene(200_000_000)
    scene = replace(scene, things=scene.things[:2])
    captions = ["A red car and a brown dog.", "A red car.", "A red car, a red car, a brown dog and a black cat."]
    assert counts(captions, [scene] * 3).tolist() == [[1, 1], [0, 1], [0, 1]]


def test_an_answer_to_nothing_is_the_same_without_the_regions(tmp_path):
    scale = PictureBookScale(tmp_path, scenes=12, pairs=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mfpo.study.picturebook._SCORED_PAIRS", 4)
        pairs = scale.scored_pairs(0)
    model, processor = load_model(WEIGHTS), load_processor(WEIGHTS)
    assert same_without_regions(WEIGHTS, pairs).tolist() == [[0, 1]] * 4
    model.model.multi_modal_projector.linear_2.weight.data.zero_()
    model.save_pretrained(tmp_path / "blind")
    processor.save_pretrained(tmp_path / "blind")
    assert same_without_regions(tmp_path / "blind", pairs).tolist() == [[1, 1]] * 4


def test_each_row_has_what_its_objective_reads_and_controls_vary_text_and_margin():
    kinds = objectives(60)
    rows = variants(60)
    for trial in [*kinds.values(), *(trial for _, trial in rows.values())]:
        needs_counter = "counter" in columns(OBJECTIVES[trial.method].cells)
        assert not needs_counter or trial.data.corruption == "counterfactual"
    assert len({trial.key() for trial in [*kinds.values(), *(trial for _, trial in rows.values())]}) == 10 + len(rows)
    assert {of for of, _ in rows.values()} <= kinds.keys()
    plain = dict(kinds[PLAIN].settings)
    for name, change in (("epochs", {"epochs": 6}), ("margin", {"margin_weight": 2.0}), ("pairs", {})):
        of, trial = rows[f"{PLAIN}, twice the {name}"]
        assert of == PLAIN
        assert dict(trial.settings) == plain | change
        assert trial.data.pairs == (120 if name == "pairs" else 60)
    of, trial = rows[f"{PLAIN}, counterfactuals as pairs"]
    assert (of, trial.settings) == (PLAIN, kinds[PLAIN].settings)
    assert trial.data == replace(kinds["counterfactual"].data, counterfactuals=True)


def test_counterfactuals_as_pairs_are_records_of_their_own(tmp_path):
    scale = PictureBookScale(tmp_path, scenes=12, pairs=6)
    data = Data(pairs=6, corruption="counterfactual", edit="replace", edits=9)
    pairs, both = (
        read_dataset(scale.data(each, 0)).with_format("arrow")[:].to_pylist()
        for each in (data, replace(data, counterfactuals=True))
    )
    assert len(both) == 2 * len(pairs) > 6
    for pair, same, other in zip(pairs, both, both[len(pairs) :], strict=False):
        assert (same["images"], same["chosen"]) == (pair["images"], pair["chosen"])
        assert (other["images"], other["prompt"]) == (pair["rejected_images"], pair["prompt"])
        assert (other["chosen"], other["rejected"]) == (pair["counter"], pair["chosen"])
    assert len({row["id"] for row in both}) == len(both)
    assert {row["level"] for row in both} == {"easy", "medium", "hard"}


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    """A study whose scores are made up: each row's CHAIR_s by its method, weights and rate."""
    rng = np.random.default_rng(0)

    def scores(self: Study, trial):
        rate = dict(trial.settings).get("learning_rate", 0)
        wrong = 0.5 if trial == BASE else 0.2 + 300 * abs(rate - 1e-4)
        wrong -= 0.15 if trial.method == "counterfactual" else 0
        made = {name: np.ones((100, 2)) for name in self.scale.figures}
        made["chair_s"][:, 0] = np.arange(100) < 100 * wrong
        made["cover"][:, 0] = 0.9
        return [{name: rng.permutation(value) if name == "chair_s" else value for name, value in made.items()}] * 3

    monkeypatch.setattr(Study, "scores", scores)
    return Study(tmp_path, PictureBookScale(tmp_path / "picturebook", scenes=12, pairs=61), [0, 1, 2], Console())


def test_the_page_says_first_what_beats_text_and_margin_and_is_worse_in_no_figure(study):
    result = look(study)
    sizes = (60, 61)
    assert list(result.table.rows) == [
        "base",
        *(f"{kind}, {size} pairs" for size in sizes for kind in objectives(size)),
        *(f"{kind}, 61 pairs" for kind in variants(61)),
    ]
    assert result.lead[0].startswith(f"counterfactual beats {PLAIN} in CHAIR_s (60 pairs)")
    assert result.lead[0].endswith(", and is worse in none of CHAIR_s, Cover, existence.")
    assert not any(said.startswith("DPO beats") for said in result.lead)
    assert result.lead[-3].startswith(f"CHAIR_s. Better than {PLAIN}: counterfactual, 60 pairs; ")
    assert ". Worse: none. Not settled: " in result.lead[-3]
    gains = {row: figures.get("chair_s_gain") for row, figures in result.table.rows.items()}
    assert gains["base"] is gains[f"{PLAIN}, 60 pairs"] is None
    assert gains["counterfactual, 61 pairs"].mean == pytest.approx(15, abs=1)
    assert gains["MFPO, counterfactual, 61 pairs"].mean == pytest.approx(0)
    assert "| better than text + margin in CHAIR_s by |" in markdown(result, "", {})
    rates = next(note for note in result.notes if note.startswith("Learning rates"))
    assert all(f"{kind}: 0.0001" in rates for kind in objectives(61))


def test_each_seed_of_look_bases_has_a_base_of_its_own(study, monkeypatch):
    bases, scores = [], Study.scores
    monkeypatch.setattr(
        Study, "scores", lambda self, trial: bases.append(self.scale.context["base"]) or scores(self, trial)[:1]
    )
    result = look_bases(study)
    shipped = LookScale(study.out, book="picturebook-context", scenes=12, pairs=61).context["base"]
    others = [[f"picturebook-context, pretrained with seed {seed}"] for seed in (1, 2)]
    rows = list(result.table.rows)
    assert rows[0] == "base"
    assert rows[1] == PLAIN
    assert bases[-3 * len(rows) :] == [shipped, *others] * len(rows)
    assert result.table.rows["counterfactual"]["chair_s_gain"].mean == pytest.approx(15, abs=1)
    assert result.lead[0].startswith(f"counterfactual beats {PLAIN} in CHAIR_s (61 pairs), and is worse in none of ")


def test_a_base_of_another_seed_is_pretrained_once(tmp_path, monkeypatch):
    made = []

    def pretrain(out, settings, book):
        made.append((settings, book))
        out.mkdir(parents=True)

    monkeypatch.setattr("mfpo.study.picturebook.pretrain", pretrain)
    folders = {PictureBookScale(tmp_path, book="picturebook-context", pretrained=seed).base for seed in (1, 2, 1)}
    assert len(folders) == 2
    assert made == [(ContextSettings(seed=seed), "picturebook-context") for seed in (1, 2)]


def test_what_is_scored_for_look_is_kept_apart_from_the_tables(tmp_path):
    plain = PictureBookScale(tmp_path, scenes=12, pairs=16)
    scale = LookScale(tmp_path, book="picturebook", scenes=12, pairs=8)
    assert scale.pairs == 16
    trial = objectives(8)["DPO"].changed(learning_rate=1e-4)
    assert trial.key(plain.context) != trial.key(scale.context)
    assert json.dumps(scale.context)
    assert {"unusual_colours", "counts", "same_without_regions", "existence_adversarial"} <= scale.figures.keys()


def test_a_model_is_scored_in_each_figure_of_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr("mfpo.study.picturebook._SCORED_PAIRS", 4)
    scale = LookScale(tmp_path, book="picturebook", scenes=12, pairs=4)
    counts_by_figure = scale.score(scale.base, BASE, 0)
    assert scale.figures.keys() <= counts_by_figure.keys()
    assert len(counts_by_figure["counts"]) == len(counts_by_figure["chair_s"]) == 12
    assert len(counts_by_figure["same_without_regions"]) == 4


def test_one_seed_settles_nothing(study):
    study.seeds = [0]
    assert look(study).lead == ["One seed settles nothing."]
