"""The experiment `rounds`: what its table and notes say of rounds that have been trained, and a checker that errs."""

import json
from itertools import product
from shutil import rmtree

import numpy as np
import pytest
from rich.console import Console

from mfpo.images import encode_image
from mfpo.pairs.check import FALSE, TRUE, Shown
from mfpo.pairs.dataset import DatasetCheck
from mfpo.pairs.questions import Asked
from mfpo.picturebook.scenes import draw_scene, make_scene
from mfpo.study.erring import BookCheck
from mfpo.study.picturebook import PictureBookScale
from mfpo.study.rounds import rounds
from mfpo.study.study import Study

ROUNDS = {"dpo-3-0": 3, "dpo-1-0": 1, "mfpo-3-0": 3, "mfpo-1-0": 1, "mfpo-3-0.05": 3, "mfpo-3-0.2": 3}


def test_rounds_that_are_trained_are_scored_and_read_from_what_is_kept(tmp_path, monkeypatch):
    scale, rng = PictureBookScale(tmp_path / "picturebook", scenes=12, pairs=16), np.random.default_rng(0)
    study = Study(tmp_path, scale, [0, 1], Console(quiet=True))
    for way, count in ROUNDS.items():
        for seed, number in product(study.seeds, range(1, count + 1)):
            folder = tmp_path / "rounds" / f"{way}-16-{seed}" / f"round{number}"
            (folder / "run").mkdir(parents=True)
            (folder / "own").mkdir()
            paired = 3 if (way, seed, number) == ("mfpo-3-0.2", 1, 3) else 16 // count
            summary = {"paired": paired, "answered": 100 * number}
            (folder / "own" / "summary.json").write_text(json.dumps(summary))
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
    wrong = result.table.rows["MFPO, round 3 of 3, 20 % of verdicts wrong"]["chair_s"].mean
    assert wrong == pytest.approx(np.mean(kept))
    base = [100 * counts_of_models[scale.base, seed].mean() for seed in study.seeds]
    verdict = next(v for v in result.table.verdicts if v.claim.worse == "base")
    assert verdict.gain.mean == pytest.approx(np.mean(base) - np.mean(kept))
    assert "dpo-3-0: 5.0, 2.5, 1.7 %; dpo-1-0: 16.0 %" in result.notes[1]
    assert result.notes[2:] == [
        "Trained on fewer pairs, as too few answers had a false claim: "
        "MFPO, round 3 of 3, 20 % of verdicts wrong, seed 1: 3 of 5."
    ]
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
