"""What the paper could not ask: how much data the image loss needs, and whether what is learned carries over."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mfpo.rank.levels import cut_levels, stages
from mfpo.study.experiments import BASE, corruption_trials, experiment, mfpo, term_trials, terms
from mfpo.study.figures import MARGINS, beside_base, margins
from mfpo.study.results import Claim, Plot, Result, Table, add_columns, fill, judge, line, table_of
from mfpo.study.statistics import Array, Estimate, Scores, difference, estimate, ratio, told
from mfpo.study.study import NotOnScale, Study
from mfpo.study.trials import Data, Trial, trained
from mfpo.train.arguments import steps_of as steps_of_training

# Numbers of pairs beside all that there are.
_SIZES = (30, 60, 150)

_CHAIR = (("chair_s", "CHAIR_s"), ("chair_i", "CHAIR_i"))
_CHAIR_AND_COVER = (("chair_s", "CHAIR_s"), ("cover", "Cover"))

# Figures that are counted scene by scene.
_BY_SCENE = ("chair_s", "chair_i", "cover", "length")


def sizes_of(study: Study) -> dict[int, Data]:
    """The data of each size, all pairs last."""
    every = study.scale.pairs
    return {size: Data(pairs=size) for size in _SIZES if size < every} | {every: Data()}


def by_size(study: Study, table: Table, points: Mapping[str, Mapping[float, str]]) -> list[Plot]:
    """Plots of `points`, which are the rows of each kind by their number of pairs."""
    return [
        Plot(
            name, "pairs", f"{name}, %", {kind: line(table, rows, figure) for kind, rows in points.items()}, log_x=True
        )
        for figure, name in study.scale.figures.items()
        if figure in ("chair_s", "cover")
    ]


def steps_note(study: Study, trials: Mapping[str, Trial], points: Mapping[str, Mapping[float, str]]) -> str:
    """How many steps each kind is trained for: what is rounded up to whole batches counts where pairs are few."""
    kinds: dict[str, list[str]] = {}
    for kind, rows in points.items():
        steps = ", ".join(f"{steps_of(study, trials[row])} with {size:g} pairs" for size, row in rows.items())
        kinds.setdefault(steps, []).append(kind)
    steps_text = "; ".join(f"{', '.join(names)}: {steps}" for steps, names in kinds.items())
    return f"Steps of training, in which the last batch of each level and epoch may be small: {steps_text}."


def steps_of(study: Study, trial: Trial) -> int:
    """How many steps of the optimizer a trial is trained for, on one process, if no pair is set aside."""
    settings = study.settings(study.with_rate(trial), study.seeds[0])
    records = (trial.data.pairs or study.scale.pairs) * trial.data.records_a_pair
    ids = [f"{number}" for number in range(records)]
    levels = stages(cut_levels([0.0] * records, ids)) if settings.curriculum else [("all", ids)]
    return sum(steps_of_training(len(rows), settings, processes=1) for _, rows in levels)


@experiment("data-size")
def data_size(study: Study) -> Result:
    """Tables 4 and 8 at several numbers of pairs."""
    trials = {"base": BASE}
    points: dict[str, dict[float, str]] = {}
    for size, data in sizes_of(study).items():
        kinds = {"DPO": trained("dpo", data)} | term_trials(data) | corruption_trials(data)
        del kinds["region"]  # which is all terms together
        for kind, trial in kinds.items():
            trials[f"{kind}, {size} pairs"] = trial
            points.setdefault(kind, {})[size] = f"{kind}, {size} pairs"
    rivals = ("text + image", "text + margin", "image + margin", "random 20 %", "global")
    joint = points["text + image + margin"]
    claims = [
        Claim(row, points[rival][size], figure, is_papers=False)
        for figure in ("chair_s", "cover")
        for size, row in joint.items()
        for rival in rivals
    ]
    table = fill(study, trials, claims=claims)
    return Result("How much data", table, by_size(study, table, points), [steps_note(study, trials, points)])


@experiment("image-loss")
def image_loss(study: Study) -> Result:
    """Settings that may make the image loss pay, at each number of pairs.

    A smaller weight; another schedule; three noises a pair, for a third of the epochs; the regions of only what the
    rejected answer does not name.
    """
    if "chair_s" not in study.scale.figures:
        raise NotOnScale("image-loss is measured in CHAIR_s; name Object HalBench, or use the picture book")
    trials = {"base": BASE}
    points: dict[str, dict[float, str]] = {}
    for size, data in sizes_of(study).items():
        kinds = _image_kinds(study, data)
        for kind, trial in kinds.items():
            trials[f"{kind}, {size} pairs"] = trial
            points.setdefault(kind, {})[size] = f"{kind}, {size} pairs"
    scores = {row: study.scores(trial) for row, trial in trials.items()}
    parts, joint = list(kinds)[:2], list(kinds)[2:]
    default, *variants = (points[kind] for kind in joint)
    claims = [Claim(variant[size], row, is_papers=False) for variant in variants for size, row in default.items()]
    table = table_of(scores, study.scale.figures, claims)
    trained_scores = {row: by_seed for row, by_seed in scores.items() if row != "base"}
    shown = add_columns(table, MARGINS, beside_base(trained_scores, scores["base"], margins))
    beside = {kind: _beside_best_part(scores, [points[part] for part in parts], points[kind]) for kind in joint}
    notes = [f"{kind}, less the better of its two parts: {gains}." for kind, gains in beside.items()]
    notes += [steps_note(study, trials, points), "Why it pays or does not is what image-gradients asks."]
    return Result("When the image loss pays", shown, by_size(study, table, points), notes)


def _image_kinds(study: Study, data: Data) -> dict[str, Trial]:
    """The two parts of the joint loss, that loss, and what may make it pay; the last only if it takes whole epochs."""
    kinds = {
        "text + margin": mfpo(data, **terms("text", "margin")),
        "image + margin": mfpo(data, **terms("image", "margin")),
        "text + image + margin": mfpo(data),
        "image weight 0.2": mfpo(data, image_weight=0.2),
        "DDPM's schedule": mfpo(replace(data, schedule="linear")),
        "what only y_w names": mfpo(replace(data, differing=True)),
    }
    epochs, rest = divmod(int(study.settings(mfpo(), study.seeds[0]).num_train_epochs), 3)
    return kinds if rest else kinds | {"three noises": mfpo(replace(data, noises=3), epochs=epochs)}


def _beside_best_part(
    scores: Mapping[str, Sequence[Scores]], parts: Sequence[Mapping[float, str]], joint: Mapping[float, str]
) -> str:
    """How CHAIR_s and Cover of the rows `joint`, by size, differ from those of the part with the lower CHAIR_s."""
    sizes = []
    for size, row in joint.items():
        best = min((scores[part[size]] for part in parts), key=lambda part: estimate(part, "chair_s").mean)
        told_in = [(figure, name) for figure, name in _CHAIR_AND_COVER if figure in best[0]]
        gains = {name: difference(scores[row], best, figure) for figure, name in told_in}
        figures = [f"{name} {told(gain, '+.1f')}" for name, gain in gains.items()]
        sizes.append(f"at {size:g} pairs {', '.join(figures)}")
    return "; ".join(sizes)


@experiment("targets")
def targets(study: Study) -> Result:
    """What this project set out to reach on the picture book."""
    light = "MFPO, image weight 0.2"
    trials = {
        "base": BASE,
        "DPO": trained("dpo"),
        "mDPO": trained("mdpo"),
        "MFPO": mfpo(),
        light: mfpo(image_weight=0.2),
    }
    pairs = (("MFPO", "DPO"), ("MFPO", "mDPO"), (light, "mDPO"))
    claims = [Claim(*pair, figure, is_papers=False) for pair in pairs for figure in ("chair_s", "chair_i", "cover")]
    claims += [Claim("MFPO", "base", figure, is_papers=False) for figure in ("cover", "existence_accuracy")]
    if "chair_s" not in study.scale.figures:
        raise NotOnScale("targets are measured with CHAIR; name Object HalBench, or use the picture book")
    full, base, dpo, lighter = (study.scores(trials[row]) for row in ("MFPO", "base", "DPO", light))
    goals = [
        *(
            (f"{name} of MFPO divided by the base's", ratio(full, base, figure), "at most", 0.3)
            for figure, name in _CHAIR
        ),
        ("Image dependence of MFPO divided by DPO's", ratio(full, dpo, "image_dependence"), "at least", 1.5),
        (f"Image dependence of {light}, divided by DPO's", ratio(lighter, dpo, "image_dependence"), "at least", 1.5),
    ]
    notes = [_reached(*goal) for goal in goals]
    notes += [
        "Also wanted: Cover at most 3 below the base's, existence accuracy not below it.",
        "Also wanted: CHAIR_s and CHAIR_i below those of DPO and of mDPO, at no less Cover.",
        f"The targets are of MFPO as it is by default; {light} was looked at after its scores were known.",
    ]
    return Result("Targets", fill(study, trials, claims=claims), notes=notes)


def _reached(name: str, reached: Estimate, side: str, goal: float) -> str:
    """Whether a target is reached, by the mean and by the whole interval."""
    sign = 1 if side == "at least" else -1
    mean, worst = sign * (reached.mean - goal), min(sign * (end - goal) for end in (reached.low, reached.high))
    word = "reached" if worst >= 0 else "reached by the mean, not settled" if mean >= 0 else "not reached"
    return f"{name}: {told(reached, '.2f')}; wanted: {side} {goal}; {word}."


@experiment("carry-over")
def carry_over(study: Study) -> Result:
    """Trained on pairs from some themes, half as many as there are of all; scored on scenes of those and the others."""
    some = Data(themes="some", pairs=study.scale.pairs // 2)
    linear = replace(some, schedule="linear")
    trials = {
        "base": BASE,
        "DPO": trained("dpo", some),
        "text + margin": mfpo(some, **terms("text", "margin")),
        "MFPO": mfpo(some),
        "MFPO, DDPM's schedule": mfpo(linear),
    }
    seen = [np.array(study.scale.is_seen(seed)) for seed in study.seeds]
    kinds = {"seen": seen, "unseen": [~is_seen for is_seen in seen]}
    scores = {
        f"{name}, {kind} themes": _of_scenes(study.scores(trial), chosen)
        for name, trial in trials.items()
        for kind, chosen in kinds.items()
    }
    claims = [
        Claim(f"MFPO, {kind} themes", f"{rival}, {kind} themes", is_papers=False)
        for kind in kinds
        for rival in trials
        if rival != "MFPO"
    ]
    rows = {row: {figure: estimate(by_seed, figure) for figure in _BY_SCENE} for row, by_seed in scores.items()}
    columns = {figure: title for figure, title in study.scale.figures.items() if figure in _BY_SCENE}
    notes = [f"Trained on {some.pairs} pairs, all from the seen themes."]
    return Result(
        "Does it carry over to unseen themes?", Table(rows, columns, verdicts=judge(claims, scores)), notes=notes
    )


def _of_scenes(scores: Sequence[Scores], chosen: Sequence[Array]) -> list[Scores]:
    """The scores of the chosen scenes alone, seed by seed."""
    if not all(scenes.any() for scenes in chosen):
        raise NotOnScale("the scored scenes of a seed all have seen themes, or all unseen ones; raise --scenes")
    return [
        {figure: counts[figure][scenes] for figure in _BY_SCENE} for counts, scenes in zip(scores, chosen, strict=True)
    ]
