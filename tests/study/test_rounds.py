"""The experiment `rounds`: what its table and notes say of rounds that have been trained, and a checker that errs."""

import json

import numpy as np
import pytest
from rich.console import Console

from mfpo.images import encode_image
from mfpo.pairs.check import FALSE, TRUE, Shown
from mfpo.pairs.dataset import DatasetCheck
from mfpo.pairs.questions import Asked
from mfpo.picturebook.scenes import draw_scene, make_scene
from mfpo.study.picturebook import PictureBookScale
from mfpo.study.rounds import BookCheck, rounds
from mfpo.study.study import Study

ROUNDS = {"dpo-3-0": 3, "dpo-1-0": 1, "mfpo-3-0": 3, "mfpo-1-0": 1, "mfpo-3-0.05": 3, "mfpo-3-0.2": 3}


def test_rounds_that_are_kept_are_not_trained_again_and_too_few_pairs_are_told(tmp_path, monkeypatch):
    scale, rng = PictureBookScale(tmp_path / "picturebook", scenes=12, pairs=16), np.random.default_rng(0)
    study = Study(tmp_path, scale, [0, 1], Console(quiet=True))
    kept = {}
    for way, count in ROUNDS.items():
        for seed in study.seeds:
            for number in range(1, count + 1):
                folder = tmp_path / "rounds" / f"{way}-16-{seed}" / f"round{number}"
                (folder / "run").mkdir(parents=True)
                (folder / "own").mkdir()
                paired = 3 if (way, seed, number) == ("mfpo-3-0.2", 1, 3) else 16 // count
                (folder / "own" / "summary.json").write_text(json.dumps({"paired": paired}))
                parts = rng.integers(0, 2, 12)
                counts = {name: [[int(part), 1] for part in parts] for name in scale.figures}
                (folder / "scores-12.json").write_text(json.dumps(counts))
                kept[way, seed, number] = 100 * parts.mean()
    base = {name: np.ones((12, 2)) for name in scale.figures}
    monkeypatch.setattr(study, "scores", lambda trial: [base, base])
    result = rounds(study)
    assert len(result.table.rows) == 1 + sum(ROUNDS.values())
    wrong = result.table.rows["MFPO, round 3 of 3, 20 % of verdicts wrong"]["chair_s"].mean
    assert wrong == pytest.approx((kept["mfpo-3-0.2", 0, 3] + kept["mfpo-3-0.2", 1, 3]) / 2)
    assert result.notes[1:] == [
        "Trained on fewer pairs, as too few answers had a false claim: "
        "MFPO, round 3 of 3, 20 % of verdicts wrong, seed 1: 3 of 5."
    ]


def test_a_checker_that_errs_flips_its_share_and_always_the_same():
    scene = make_scene(1)
    image = encode_image(draw_scene(scene)[0])
    shown = [Shown(Asked(f"{n}", image, "a.png", "?", ["dog"]), "There is a dog and a cat.") for n in range(500)]
    right = DatasetCheck("", None)(shown)
    assert {claim.verdict for claims in right for claim in claims} == {TRUE, FALSE}
    assert BookCheck("0", None)(shown) == right
    erring = BookCheck("0.2", None)
    found = erring(shown)
    flipped = [
        a.verdict != b.verdict
        for claims, others in zip(found, right, strict=True)
        for a, b in zip(claims, others, strict=True)
    ]
    assert abs(np.mean(flipped) - 0.2) < 0.04  # three standard errors
    assert erring(shown[::-1]) == found[::-1]
