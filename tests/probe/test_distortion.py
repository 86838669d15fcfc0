"""Distorted images against one record at a time, without padding and without a cache."""

import json

import numpy as np
import pytest
import torch

from mfpo.build.noise import alpha_bar
from mfpo.build.pipeline import build
from mfpo.build.regions import open_segmenter
from mfpo.build.settings import BuildSettings
from mfpo.errors import MfpoError, SettingError
from mfpo.models import load_model
from mfpo.picturebook import WEIGHTS
from mfpo.picturebook.source import PictureBookSource
from mfpo.probe.cases import read_cases
from mfpo.probe.distortion import noise, probe_distortion, without_regions
from mfpo.probe.settings import DistortionSettings
from mfpo.processors import load_processor


def plain_answer(model, processor, image, question, *, tokens):
    """The likeliest token after everything before it."""
    inputs = processor(text=f"USER: <image>\n{question} ASSISTANT:", images=image, return_tensors="pt")
    start = inputs["input_ids"].shape[1]
    for _ in range(tokens):
        with torch.no_grad():
            token = model(**inputs, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if token.item() == processor.tokenizer.eos_token_id:
            break
    return processor.decode(inputs["input_ids"][0, start:], skip_special_tokens=True).strip()


def plain_logp(model, processor, image, question, answer):
    prompt = f"USER: <image>\n{question} ASSISTANT:"
    before = processor(text=prompt, images=image, return_tensors="pt")["input_ids"].shape[1]
    inputs = processor(text=f"{prompt} {answer}</s>", images=image, return_tensors="pt")
    ids = inputs["input_ids"][0]
    with torch.no_grad():
        table = model(**inputs).logits[0].log_softmax(dim=-1)
    return sum(float(table[i - 1, ids[i]]) for i in range(before, len(ids)))


def cases_of(folder):
    cases = read_cases(folder, None, lambda case: None)
    return cases.open(cases.rows)


def test_figures_are_those_of_plain_greedy_search_and_plain_log_probabilities(tiny_llava, good, tmp_path):
    settings = DistortionSettings(steps=(0, 999), max_new_tokens=6, batch_size=3)
    found = probe_distortion(good, {"tiny": tiny_llava}, tmp_path / "out", settings).rows
    model, processor = load_model(tiny_llava), load_processor(tiny_llava)
    question = "What is there?"
    shares = []
    for row in found:
        same, drops = [], []
        for case in cases_of(good):
            noised = (
                without_regions(case)
                if row.where == "inpainted"
                else noise(case, row.where, step=row.step, schedule="sigmoid", seed=0)
            ).image
            answers = [plain_answer(model, processor, image, question, tokens=6) for image in (case.image, noised)]
            answer = case.chosen[0]["content"]
            logps = [plain_logp(model, processor, image, question, answer) for image in (case.image, noised)]
            same.append(answers[0] == answers[1])
            drops.append(logps[0] - logps[1])
        assert row.same.value == pytest.approx(100 * np.mean(same)), (row.where, row.step)
        assert row.drop.value == pytest.approx(np.mean(drops), abs=1e-3)
        assert row.same.n == row.drop.n == 5
        assert row.drop.low <= row.drop.value <= row.drop.high
        shares.append(row.same.value)
    steps = [("image", 0), ("image", 999), ("region", 0), ("region", 999), ("inpainted", None)]
    assert [(row.where, row.step) for row in found] == steps
    assert len(set(shares)) > 1, "the noise should change an answer"


def test_the_noise_is_one_draw_a_record(good):
    case, other = cases_of(good)[0], cases_of(good)[4]
    mask = np.any(list(case.masks.values()), axis=0)
    pixels = np.asarray(case.image) / 127.5 - 1

    def drawn(case, where, step):
        """eps of m' = sqrt(abar) m + sqrt(1 - abar) eps, as far as m' was not clipped."""
        kept = alpha_bar(step)
        noised = np.asarray(noise(case, where, step=step, schedule="sigmoid", seed=0).image) / 127.5 - 1
        eps = (noised - np.sqrt(kept) * pixels) / np.sqrt(1 - kept)
        return np.where(np.abs(noised) < 1, eps, np.nan), noised

    whole, _ = drawn(case, "image", 400)
    for where, step in (("image", 500), ("image", 600), ("region", 500)):
        again, noised = drawn(case, where, step)
        both = np.isfinite(whole) & np.isfinite(again)
        both[~mask] &= where == "image"
        assert both.sum() > 100
        np.testing.assert_allclose(again[both], whole[both], atol=0.02)  # 8 bits
        if where == "region":
            np.testing.assert_allclose(noised[~mask], pixels[~mask])
    assert not np.array_equal(
        *(np.asarray(noise(c, "image", step=999, schedule="sigmoid", seed=0).image)[:10, :10] for c in (case, other))
    )


def test_answers_of_the_picture_book_change_more_and_more(tmp_path):
    settings = BuildSettings()
    build(PictureBookSource(4), tmp_path / "data", settings, segmenter=open_segmenter("dataset", settings))
    asked = DistortionSettings(steps=(0, 500, 999), max_new_tokens=16)
    found = probe_distortion(tmp_path / "data", {"picturebook": WEIGHTS}, tmp_path / "out", asked).rows
    same = {(row.where, row.step): row.same.value for row in found}
    drop = {(row.where, row.step): row.drop.value for row in found}
    assert same["image", 0] == 100
    assert same["image", 999] == 0
    assert same["region", 0] > same["region", 999]
    for where in ("image", "region"):
        assert abs(drop[where, 0]) < 0.5 < drop[where, 500] < drop[where, 999]
    assert drop["region", 999] < drop["image", 999]
    # At the paper's step nearly all of a region is still seen.
    assert 5 * drop["region", 500] < drop["inpainted", None]


def test_records_that_cannot_be_used_are_set_aside_by_reason(tiny_llava, good, mixed, tmp_path):
    settings = DistortionSettings(steps=(500,), max_new_tokens=4)
    of_good = probe_distortion(good, {"tiny": tiny_llava}, tmp_path / "good", settings)
    of_mixed = probe_distortion(mixed, {"tiny": tiny_llava}, tmp_path / "mixed", settings)
    set_aside = json.loads((tmp_path / "mixed" / "results.json").read_text())["set_aside"]
    assert list(set_aside) == ["none", "two", "broken", "wrong"]
    for id, words in zip(set_aside, ("has a region", "2 images", "cannot be read", "its masks are"), strict=True):
        assert words in set_aside[id]
    assert sum(of_mixed.cases.reasons().values()) == 4
    # Only nearly the same: what stands in one batch may be summed in another order.
    for row, other in zip(of_good.rows, of_mixed.rows, strict=True):
        assert row.same == other.same
        assert row.drop.value == pytest.approx(other.drop.value, abs=1e-4)


def test_two_models_see_the_same_records_and_stand_side_by_side(tiny_llava, good, tmp_path):
    settings = DistortionSettings(steps=(0, 999), max_new_tokens=4, limit=2)
    out = tmp_path / "out"
    found = probe_distortion(good, {"<b>a": tiny_llava, "b": tiny_llava}, out, settings).rows
    halves = [
        [(row.where, row.step, row.same, row.drop) for row in found if row.model == name] for name in ("<b>a", "b")
    ]
    assert halves[0] == halves[1]
    results = json.loads((out / "results.json").read_text())
    assert len(results["figures"]) == 10
    assert results["figures"][0]["same"].keys() == {"value", "low", "high", "n"}
    assert results["figures"][0]["drop"]["n"] == 2
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "<b>a" not in page
    assert "&lt;b&gt;a" in page
    assert (out / "made_by.json").is_file()


def test_a_dataset_without_a_region_is_refused(tiny_llava, preference_data, tmp_path):
    with pytest.raises(MfpoError, match=r"none of 14 records can be used .*has a region"):
        probe_distortion(preference_data, {"tiny": tiny_llava}, tmp_path / "out", DistortionSettings())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"steps": ()}, "steps must be"),
        ({"steps": (5, 5)}, "steps must be"),
        ({"steps": (0, 1000)}, "step 1000"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_settings_are_checked(wrong, words):
    with pytest.raises(SettingError, match=words):
        DistortionSettings(**wrong)
