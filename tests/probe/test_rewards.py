"""Margins over training, from the metrics of runs."""

import json

import numpy as np
import pytest

from mfpo.errors import MfpoError, SettingError
from mfpo.probe.rewards import Final, probe_rewards, row_of
from mfpo.probe.settings import RewardsSettings


def write_run(folder, margins, image_margins=None):
    folder.mkdir()
    lines = []
    for number, margin in enumerate(margins):
        line = {"step": 10 * (number + 1), "stage": "easy", "rewards/margins": margin}
        if image_margins is not None:
            line["rewards/image_margins"] = image_margins[number]
        lines.append(json.dumps(line) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_runs_end_at_the_mean_of_their_last_lines(tmp_path):
    random = np.random.default_rng(0)
    text, image = random.normal(2, 1, 30), random.normal(3, 1, 30)
    runs = [write_run(tmp_path / "<i>mfpo", text.tolist(), image.tolist()), write_run(tmp_path / "dpo", text.tolist())]
    out = tmp_path / "out"
    mfpo, dpo = probe_rewards(runs, out, RewardsSettings(window=7)).values()
    assert mfpo.step == 300
    assert mfpo.text_margin == pytest.approx(sum(text[23:]) / 7)
    assert mfpo.image_margin == pytest.approx(sum(image[23:]) / 7)
    assert mfpo.balance == pytest.approx(sum(image[23:]) / sum(text[23:]))
    assert (dpo.text_margin, dpo.image_margin, dpo.balance) == (mfpo.text_margin, None, None)
    results = json.loads((out / "results.json").read_text())
    assert results["runs"][str(runs[0])]["balance"] == mfpo.balance
    assert results["settings"] == {"window": 7}
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 3  # text, image, balance
    assert f"<td>{mfpo.balance:.2f}</td>" in page
    assert "<i>mfpo" not in page


def test_a_balance_over_nothing_is_none(tmp_path):
    run = write_run(tmp_path / "run", [0.0, 0.0], [1.0, 1.0])
    (end,) = probe_rewards([run], tmp_path / "out", RewardsSettings(window=2)).values()
    assert end.balance is None


def test_no_zero_is_negative():
    assert row_of("dpo", Final(10, -0.001, None, -0.01))[2:] == ("0.00", "–", "-0.01")


def test_bad_runs_are_named(tmp_path):
    good = write_run(tmp_path / "good", [1.0])
    out, settings = tmp_path / "out", RewardsSettings()
    with pytest.raises(MfpoError, match=r"none.metrics\.jsonl does not exist"):
        probe_rewards([good, tmp_path / "none"], out, settings)
    with pytest.raises(SettingError, match="twice"):
        probe_rewards([good, good], out, settings)
    with pytest.raises(MfpoError, match="empty"):
        probe_rewards([write_run(tmp_path / "empty", [])], out, settings)
    with pytest.raises(MfpoError, match=r"line 2: 'rewards/margins' is missing or not a number"):
        probe_rewards([write_run(tmp_path / "broken", [1.0, None])], out, settings)
    held_out = tmp_path / "held_out"
    held_out.mkdir()
    (held_out / "metrics.jsonl").write_text('{"step": 1, "eval/loss": 0.5}\n')
    with pytest.raises(MfpoError, match="has no line of training yet"):
        probe_rewards([held_out], out, settings)
    with pytest.raises(SettingError, match="window is 0"):
        RewardsSettings(window=0)
    assert not out.exists()
