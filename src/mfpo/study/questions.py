"""What the paper could not ask: how much data the image loss needs, and whether what is learned carries over."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mfpo.study.experiments import BASE, Plot, Result, corruption_trials, experiment, mfpo, term_trials, terms
from mfpo.study.figures import MARGINS, margins
from mfpo.study.statistics import Array, Scores, estimate
from mfpo.study.study import Study
from mfpo.study.tables import Claim, Table, fill, line
from mfpo.study.trials import Data, trained

# Numbers of pairs beside all that there are.
SIZES = (30, 60, 150)

# Of them, what `image-loss` takes.
_FEW = 60

# Figures that are counted scene by scene.
_BY_SCENE = ("chair_s", "chair_i", "cover", "length")


@experiment("data-size")
def data_size(study: Study) -> Result:
    """Tables 4 and 8 at several numbers of pairs."""
    trials = {"base": BASE}
    points: dict[str, dict[float, str]] = {}
    sizes = {**{size: Data(pairs=size) for size in SIZES}, study.scale.pairs: Data()}
    for size, data in sizes.items():
        trials[f"DPO, {size} pairs"] = trained("dpo", data)
        for kind, trial in (term_trials(data) | corruption_trials(data)).items():
            if kind != "region":  # which is all terms together
                row = f"{kind}, {size} pairs"
                trials[row] = trial
                points.setdefault(kind, {})[size] = row
    rivals = ("text + margin", "image + margin", "random 20 %", "global")
    joint = "text + image + margin"
    claims = [Claim(f"{joint}, {size} pairs", f"{row}, {size} pairs") for size in sizes for row in rivals]
    table = fill(study, trials, claims=claims)
    plots = [
        Plot(name, "pairs", f"{name}, %", {kind: line(table, own, figure) for kind, own in points.items()})
        for figure, name in (("chair_s", "CHAIR_s"), ("cover", "Cover"))
    ]
    return Result("How much data", table, plots)


@experiment("image-loss")
def image_loss(study: Study) -> Result:
    """Settings that may make the image loss pay, with few pairs and with all: a smaller weight, another schedule, noise
    that is new in each epoch, regions of only what the rejected answer does not name."""
    trials = {"base": BASE}
    for size, data in {_FEW: Data(pairs=_FEW), study.scale.pairs: Data()}.items():
        without = {"text + margin": mfpo(data, **terms("text", "margin"))}
        joint = {
            "text + image + margin": mfpo(data),
            "image weight 0.2": mfpo(data, image_weight=0.2),
            "DDPM's schedule": mfpo(replace(data, schedule="linear")),
            "new noise each epoch": mfpo(replace(data, noises=3), epochs=1),
            "what only y_w names": mfpo(replace(data, differing=True)),
        }
        trials |= {f"{row}, {size} pairs": trial for row, trial in (without | joint).items()}
    table = fill(study, trials)
    base = study.scores(BASE)
    rows = {}
    for row, trial in trials.items():
        own = [margins(one, reference) for one, reference in zip(study.scores(trial), base, strict=True)]
        rows[row] = {**table.rows[row], **{name: estimate(own, name) for name in MARGINS}}
    columns = {**table.columns, **MARGINS}
    return Result("When the image loss pays", replace(table, rows=rows, columns=columns))


@experiment("carry-over")
def carry_over(study: Study) -> Result:
    """Trained on pairs from some themes, scored on scenes of those and of the others."""
    some, linear = Data(themes="some"), Data(themes="some", schedule="linear")
    trials = {
        "base": BASE,
        "DPO": trained("dpo", some),
        "text + margin": mfpo(some, **terms("text", "margin")),
        "MFPO": mfpo(some),
        "MFPO, DDPM's schedule": mfpo(linear),
    }
    seen = [np.array(study.scale.is_seen(seed)) for seed in study.seeds]
    rows = {}
    for name, trial in trials.items():
        scores = study.scores(trial)
        for title, chosen in (("seen", seen), ("unseen", [~one for one in seen])):
            own = _of_scenes(scores, chosen)
            rows[f"{name}, {title} themes"] = {figure: estimate(own, figure) for figure in _BY_SCENE}
    columns = {figure: title for figure, title in study.scale.figures.items() if figure in _BY_SCENE}
    return Result("Does it carry over", Table(rows, columns))


def _of_scenes(scores: Sequence[Scores], chosen: Sequence[Array]) -> list[Scores]:
    """The scores of the chosen scenes alone, seed by seed."""
    return [{figure: own[figure][kept] for figure in _BY_SCENE} for own, kept in zip(scores, chosen, strict=True)]
