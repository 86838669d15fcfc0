"""The paper's figures."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mfpo.probe.attention import AttentionSettings, probe_attention
from mfpo.probe.distortion import WHERE, DistortionSettings, probe_distortion
from mfpo.probe.page import Line
from mfpo.probe.rewards import smooth
from mfpo.study.experiments import BASE, Plot, Result, experiment, mfpo, terms
from mfpo.study.paper import PAPER
from mfpo.study.statistics import LOGPS, Estimate, Scores, estimate
from mfpo.study.study import Study
from mfpo.study.tables import Claim, Table, fill, line
from mfpo.study.trials import Data, Trial, trained

NOISE_STEPS = (100, 300, 500, 700, 900)

# Of the rewards in Figure 2; the methods' own.
_BETA = 0.1

# What `margins` gives.
MARGINS = {"text_margin": "text margin", "image_margin": "image margin"}

# Columns of Figure 1.
_DISTORTION = {"same": "same answers, %", "drop": "drop of log p(y_w), nats"}

# Lines of metrics that a curve is smoothed over, each the mean of ten steps.
_WINDOW = 5


@experiment("figure1")
def figure1(study: Study) -> Result:
    """Answers to distorted images, and attention on the key object, of the first seed's models."""
    seed = study.seeds[0]
    trials = {"base": BASE, "DPO": trained("dpo"), "MFPO": mfpo()}
    models = {name: study.model(trial, seed) for name, trial in trials.items()}
    pairs = study.scale.scored_pairs(seed)
    key = trials["MFPO"].key(*(study.with_rate(trial).settings for trial in trials.values()), study.scale.context)
    distorted = study.out / "probes" / f"distortion-{key}-{seed}"
    if not distorted.exists():
        probe_distortion(pairs, models, distorted, DistortionSettings())
    rows = json.loads((distorted / "results.json").read_text(encoding="utf-8"))["figures"]
    attended = study.out / "probes" / f"attention-{key}-{seed}"
    if not attended.exists():
        probe_attention(pairs, models, attended, AttentionSettings())
    plots = [Plot(title, "noise step", "same answers, %", _by_model(rows, where)) for where, title in WHERE.items()]
    shown = {
        f"{row['model']}, {WHERE[row['where']]}, step {row['step']}": {key: _estimate(row[key]) for key in _DISTORTION}
        for row in rows
        if row["step"] in (500, 999)
    }
    table = Table(shown, _DISTORTION)
    study.console.print(f"open {attended / 'report.html'}")
    notes = [f"Of the models of seed {seed}. The attention is on a page of its own, in the folder `probes`."]
    return Result("Figure 1: distorted images and attention", table, plots, notes)


def _by_model(rows: Sequence[Mapping[str, Any]], where: str) -> dict[str, Line]:
    lines = {}
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name and row["where"] == where]
        same = [row["same"] for row in own]
        lines[name] = Line(
            x=[row["step"] for row in own],
            y=[figure["value"] for figure in same],
            low=[figure["low"] for figure in same],
            high=[figure["high"] for figure in same],
        )
    return lines


def _estimate(figure: Mapping[str, float]) -> Estimate:
    return Estimate(figure["value"], None, figure["low"], figure["high"], 1)


@experiment("figure2")
def figure2(study: Study) -> Result:
    """How far text and image reward pull apart: trained on text alone, with cropped and with region images too."""
    cropped = Data(corruption="crop")
    trials = {
        "text": trained("dpo"),
        "text + cropped image": mfpo(cropped, **terms("text", "image")),
        "text + region image": mfpo(**terms("text", "image")),
    }
    base = study.scores(BASE)
    scores = {
        row: [margins(own, reference) for own, reference in zip(study.scores(trial), base, strict=True)]
        for row, trial in trials.items()
    }
    rows = {row: {name: estimate(own, name) for name in MARGINS} for row, own in scores.items()}
    notes = [
        "A margin is r(y_w, m) - r(y_l, m) for the text and r(y_w, m) - r(y_w, m') for the image, with m' noised in "
        "its key regions, on pairs that nobody trained on.",
        *(
            f"{row}: the image margin is {own['image_margin'].mean / own['text_margin'].mean:.2f} of the text margin."
            for row, own in rows.items()
        ),
    ]
    return Result("Figure 2: the balance of rewards", Table(rows, MARGINS, PAPER["figure2"]), notes=notes)


def margins(own: Scores, reference: Scores) -> Scores:
    """The margins of the scored pairs, from their log-probabilities under a model and under the base."""
    chosen, rejected, rejected_image = (_BETA * (own[name] - reference[name])[:, 0] for name in LOGPS)
    values = {"text_margin": chosen - rejected, "image_margin": chosen - rejected_image}
    return {name: np.stack([value, np.ones_like(value)], axis=1) for name, value in values.items()}


@experiment("figure5")
def figure5(study: Study) -> Result:
    """After each stage of the training."""
    stages = {f"after {stage}": mfpo(stage=stage) for stage in ("easy", "medium")}
    trials = {"base": BASE, **stages, "after hard": mfpo()}
    claims = [Claim("after medium", "after easy"), Claim("after hard", "after medium")]
    table = fill(study, trials, paper=PAPER["figure5"], claims=claims)
    plots = [
        Plot(name, "stage", f"{name}, %", {"MFPO": line(table, dict(enumerate(trials)), figure)})
        for figure, name in study.scale.figures.items()
        if figure == "chair_s"
    ]
    return Result("Figure 5: after each stage", table, plots)


@experiment("figure6")
def figure6(study: Study) -> Result:
    """The rewards over training, with the margin term and without it; the first seed's runs."""
    trials = {"with margin": mfpo(), "without margin": mfpo(**terms("text", "image"))}
    table, notes = fill(study, {"base": BASE, **trials}), [f"The curves are of seed {study.seeds[0]}."]
    names = {"chosen": "rewards/chosen", "rejected": "rewards/rejected", "rejected image": "rewards/image_rejected"}
    plots = [
        Plot(row, "step", "reward", {name: _logged(study, trial, key) for name, key in names.items()})
        for row, trial in trials.items()
    ]
    return Result("Figure 6: rewards with and without the margin", table, plots, notes)


@experiment("figure7")
def figure7(study: Study) -> Result:
    """The terms of the loss over training; the first seed's runs."""
    trials = {"easy to hard": mfpo(), "end to end": mfpo(curriculum=False)}
    table, notes = fill(study, {"base": BASE, **trials}), [f"The curves are of seed {study.seeds[0]}."]
    names = {name: f"loss/{name}" for name in ("text", "image", "margin")}
    plots = [
        Plot(row, "step", "loss", {name: _logged(study, trial, key) for name, key in names.items()})
        for row, trial in trials.items()
    ]
    return Result("Figure 7: the loss over training", table, plots, notes)


def _logged(study: Study, trial: Trial, key: str) -> Line:
    """A metric of the first seed's run, smoothed."""
    lines = (study.run(trial, study.seeds[0]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(one) for one in lines]
    raw = [row[key] for row in rows]
    return Line(x=[row["step"] for row in rows], y=smooth(raw, _WINDOW), raw=raw)


@experiment("figure8")
def figure8(study: Study) -> Result:
    """How much noise destroys a region, in the schedule that the paper's numbers fit; DDPM's at one step beside it."""
    points: dict[float, str] = {step: f"step {step}" for step in NOISE_STEPS}
    trials = {"base": BASE, **{points[step]: mfpo(Data(noise_step=step)) for step in NOISE_STEPS}}
    trials["DDPM's schedule, step 500"] = mfpo(Data(schedule="linear"))
    claims = [Claim("step 500", row) for step, row in points.items() if step != 500]
    table = fill(study, trials, claims=claims)
    plots = [
        Plot(name, "noise step", f"{name}, %", {"MFPO": line(table, points, figure)})
        for figure, name in study.scale.figures.items()
        if figure in ("chair_s", "cover")
    ]
    return Result("Figure 8: the noise step", table, plots)
