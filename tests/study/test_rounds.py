"""The experiment `rounds`: what its table and notes say of rounds that have been trained, and a checker that errs."""

import json
from itertools import product
from shutil import rmtree

import numpy as np
import pytest
import yaml
from rich.console import Console

from mfpo.dataset import read_dataset
from mfpo.errors import SettingError
from mfpo.images import encode_image
from mfpo.pairs.check import FALSE, TRUE, Shown
from mfpo.pairs.dataset import DatasetCheck
from mfpo.pairs.questions import Asked
from mfpo.picturebook.scenes import draw_scene, make_scene
from mfpo.study import rounds as rounds_module
from mfpo.study.erring import BookCheck
from mfpo.study.picturebook import PictureBookScale
from mfpo.study.rounds import Way, rounds
from mfpo.study.study import Study
from mfpo.study.trials import trained

ROUNDS = {"dpo-3-0": 3, "dpo-1-0": 1, "mfpo-3-0": 3, "mfpo-1-0": 1, "mfpo-3-0.05": 3, "mfpo-3-0.2": 3}


def test_rounds_that_are_trained_are_scored_and_read_from_what_is_kept(tmp_path, monkeypatch):
    scale, rng = PictureBookScale(tmp_path / "picturebook", scenes=12, pairs=16), np.random.default_rng(0)
    study = Study(tmp_path, scale, [0, 1], Console(quiet=True))
    for (way, count), seed in product(ROUNDS.items(), study.seeds):
        settings = study.settings(study.with_rate(trained(way.partition("-")[0])), seed).shown()
        for number in range(1, count + 1):
            run = tmp_path / "rounds" / f"{way}-16-{seed}" / f"round{number}" / "run"
            run.mkdir(parents=True)
            (run / "config.yaml").write_text(yaml.safe_dump(settings))
            asked = way if number > 1 else f"base{way[way.index('-') :]}"
            own = tmp_path / "rounds" / f"{asked}-16-{seed}" / f"round{number}" / "own"
            own.mkdir(parents=True, exist_ok=True)
            paired = 3 if (way, seed, number) == ("mfpo-3-0.2", 1, 3) else 16 // count
            (own / "summary.json").write_text(json.dumps({"paired": paired, "answered": 100 * number}))
    counts_of_models = {}

    def score(model, trial, seed):
        parts = rng.integers(0, 2, 12)
        counts_of_models[model, seed] = parts
        return {name: np.stack([parts, np.ones(12, int)], axis=1) for name in scale.figures}

    monkeypatch.setattr(scale, "score", score)
    result = rounds(study)
    assert len(result.table.rows) == 1 + sum(ROUNDS.values())
    models = [tmp_path / "rounds" / f"mfpo-3-0.2-16-{seed}" / "round3" / "run" / "model" for seed in study.seeds]
    kept = [100 * counts_of_models[model, seed].mean() for seed, model in enumerate(models)]
    wrong = result.table.rows["MFPO, 20 % of verdicts wrong, round 3 of 3"]["chair_s"].mean
    assert wrong == pytest.approx(np.mean(kept))
    base = [100 * counts_of_models[scale.base, seed].mean() for seed in study.seeds]
    verdict = next(v for v in result.table.verdicts if v.claim.worse == "base")
    assert verdict.gain.mean == pytest.approx(np.mean(base) - np.mean(kept))
    assert "DPO, 3 x 5 pairs: 9; DPO, 1 x 16 pairs: 6; MFPO, 3 x 5 pairs: 27" in result.notes[1]
    assert "DPO, 3 x 5 pairs: 5.0, 2.5, 1.7 %; DPO, 1 x 16 pairs: 16.0 %" in result.notes[2]
    assert result.notes[3:] == [
        "Trained on fewer pairs, as too few answers had a false claim: "
        "MFPO, 20 % of verdicts wrong, round 3 of 3, seed 1: 3 of 5."
    ]
    last = models[1].with_name("config.yaml")
    last.write_text(last.read_text().replace("learning_rate: 3.0e-05", "learning_rate: 0.5"))
    score_file = next(
        file
        for file in (tmp_path / "scores").glob("*-1.json")
        if '["round",3],["way","mfpo-3-0.2"]' in file.read_text()
    )
    kept_scores = score_file.read_text()
    score_file.unlink()
    with pytest.raises(SettingError, match=r"learning_rate was 0\.5 and is 3e-05"):
        rounds(study)
    score_file.write_text(kept_scores)
    rmtree(tmp_path / "rounds")
    monkeypatch.setattr(scale, "score", None)
    assert rounds(study) == result


def test_a_checker_that_errs_flips_its_share_and_always_the_same():
    scene = make_scene(1)
    image = encode_image(draw_scene(scene)[0])
    shown = [Shown(Asked(f"{n}", image, "a.png", "?", ["dog"]), "There is a dog and a cat.") for n in range(500)]
    right = DatasetCheck("", None)(shown)
    assert {claim.verdict for claims in right for claim in claims} == {TRUE, FALSE}
    assert BookCheck(0)(shown) == right
    erring = BookCheck(0.2)
    found = erring(shown)
    flipped = [
        a.verdict != b.verdict
        for claims, others in zip(found, right, strict=True)
        for a, b in zip(claims, others, strict=True)
    ]
    assert abs(np.mean(flipped) - 0.2) < 0.04  # three standard errors
    assert erring(shown[::-1]) == found[::-1]


def test_a_second_round_asks_and_trains_the_model_of_the_first(tmp_path, monkeypatch):
    scale = PictureBookScale(tmp_path / "picturebook", scenes=12, pairs=4)
    monkeypatch.setattr(scale, "train_settings", lambda: ["epochs=1"])
    study, way = Study(tmp_path, scale, [0], Console(quiet=True)), Way("dpo", rounds=2)
    second = rounds_module._model(study, way, 2, 0)
    folders = [tmp_path / "rounds" / f"{name}-2-0-4-0" for name in ("base", "dpo")]
    first = folders[1] / "round1" / "run" / "model"
    assert second == folders[1] / "round2" / "run" / "model"
    asked = [folders[0] / "round1" / "own", folders[1] / "round2" / "own"]
    made_by = [json.loads((folder / "made_by.json").read_text()) for folder in [*asked, second.parents[0]]]
    assert [made["model"] for made in made_by] == [str(scale.base), str(first), str(first)]
    scenes = [{row["id"] for row in read_dataset(folder)} for folder in asked]
    assert all(scenes)
    assert not scenes[0] & scenes[1]
    # Nothing is asked twice: another method begins with the same answers of the base.
    monkeypatch.setattr(rounds_module, "open_asker", None)
    assert rounds_module._pairs(study, Way("mfpo", rounds=2), 1, 0) == asked[0]
