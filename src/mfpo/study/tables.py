"""The paper's tables as the trials that they are made of; its figures are in `figures`, our own in `questions`."""

from dataclasses import replace
from functools import partial
from typing import Any

from mfpo.picturebook.rates import CANDIDATES, RATES
from mfpo.study.experiments import BASE, claim, corruption_trials, experiment, mfpo, term_trials
from mfpo.study.paper import PAPER
from mfpo.study.results import Claim, Result, fill
from mfpo.study.statistics import difference, told
from mfpo.study.study import NotOnScale, Study
from mfpo.study.trials import Data, Trial, trained


@experiment("table1")
def table1(study: Study) -> Result:
    """All methods, trained on the same records, each at its own validated rate; and two ways to decode."""
    trials = {
        "base": BASE,
        "VCD": replace(BASE, decode="vcd"),
        "OPERA": replace(BASE, decode="opera"),
        "EOS": trained("eos"),
        "HACL": trained("hacl"),
        "HA-DPO": trained("ha-dpo"),
        "POVID": trained("povid"),
        "HALVA": trained("halva"),
        "RLHF-V's dense DPO": trained("ddpo"),
        "DPO": trained("dpo"),
        "mDPO": trained("mdpo"),
        "MFPO": mfpo(),
    }
    others = [row for row in trials if row not in ("OPERA", "MFPO")]  # OPERA's scenes are not all
    figures = ("chair_s", "chair_i", "cover", "mmhal_score")
    claims = [claim("table1", "MFPO", other, figure) for other in others for figure in figures]
    table = fill(study, trials, paper=PAPER["table1"], claims=claims)
    notes = [
        *_opera_note(study, trials["OPERA"]),
        "VCD samples at temperature 1, as its authors do, the others take the likeliest token; OPERA has 5 beams.",
        "Where a method is trained on less than its authors ask for, its page in the docs (methods) says so.",
    ]
    return Result("Table 1: all methods", table, notes=notes)


def _opera_note(study: Study, opera: Trial) -> list[str]:
    """How OPERA differs from the base on its own scenes, where it describes only the first of those of the others."""
    figures = {name: title for name, title in study.scale.figures.items() if name in ("chair_s", "cover")}
    described, base = study.scores(opera), study.scores(BASE)
    scenes = len(described[0]["chair_s"]) if "chair_s" in figures else 0
    if scenes == len(base[0].get("chair_s", ())):
        return []
    same = [{figure: counts[figure][:scenes] for figure in figures} for counts in base]
    gains = {title: difference(described, same, figure) for figure, title in figures.items()}
    by = ", ".join(f"{title} {told(gain, '+.1f')}" for title, gain in gains.items())
    return [f"OPERA describes the first {scenes} scenes of each seed; less the base on the same: {by}."]


@experiment("table2")
def table2(study: Study) -> Result:
    """By type of question: MMHal-Bench's, or what is there and what is not, chosen in three ways."""
    if not study.scale.question_types:
        raise NotOnScale("table2 needs types of questions; name MMHal-Bench, or take the picture book")
    trials = {"base": BASE, "DPO": trained("dpo"), "mDPO": trained("mdpo"), "MFPO": mfpo()}
    table = fill(study, trials, columns=study.scale.question_types)
    return Result("Table 2: by type of question", table)


@experiment("table3")
def table3(study: Study) -> Result:
    """General questions, after training on either source of preferences: nothing should be lost."""
    study.check_ranked()
    ranked, human = Data(source="ranked"), Data(source="human")
    trials = {
        "base": BASE,
        "DPO, corrected": trained("dpo"),
        "DPO, ranked": trained("dpo", ranked),
        "DPO, human": trained("dpo", human),
        "MFPO, corrected": mfpo(),
        "MFPO, ranked": mfpo(ranked),
        "MFPO, human": mfpo(human),
    }
    names = ("llava_bench_conversation", "llava_bench_captioning", "existence_accuracy", "cover", "length")
    columns = {name: title for name, title in study.scale.figures.items() if name in names}
    if not {"llava_bench_conversation", "existence_accuracy"} & columns.keys():
        raise NotOnScale("table3 needs general questions; name LLaVA-Bench, or take the picture book")
    paper = {"base": PAPER["table3"]["base"], "MFPO, corrected": PAPER["table3"]["MFPO"]}
    claims = [Claim("MFPO, corrected", "base", name, is_papers=name in paper["base"]) for name in names[:-1]]
    return Result("Table 3: general questions", fill(study, trials, columns=columns, paper=paper, claims=claims))


@experiment("table4")
def table4(study: Study) -> Result:
    """The loss's terms, alone and together."""
    joint = "text + image + margin"
    rivals = ("text + image", "text + margin", "image + margin")
    figures = ("chair_s", "mmhal_score", "cover")
    claims = [claim("table4", joint, row, figure) for figure in figures for row in rivals]
    trials = {"base": BASE, **term_trials(Data())}
    return Result("Table 4: the terms of the loss", fill(study, trials, paper=PAPER["table4"], claims=claims))


@experiment("table5")
def table5(study: Study) -> Result:
    """The reward that the chosen answer has to exceed."""
    trials = {"base": BASE, "eta 0": mfpo(), "eta 0.2": mfpo(eta=0.2), "eta 0.4": mfpo(eta=0.4)}
    claims = [Claim("eta 0", "eta 0.2"), Claim("eta 0", "eta 0.4")]
    notes = ["The paper reports eta = 0 as best, but not by which figure."]
    return Result("Table 5: the margin", fill(study, trials, paper=PAPER["table5"], claims=claims), notes=notes)


@experiment("table6")
def table6(study: Study) -> Result:
    """The weights of text, image and margin term."""
    papers = ((1.0, 1.0, 1.0), (1.0, 5.0, 1.0), (5.0, 1.0, 1.0), (1.0, 1.0, 5.0))
    ratios = (*papers, (2.0, 1.0, 1.0), (1.0, 2.0, 1.0), (1.0, 1.0, 2.0), (1.0, 0.2, 1.0))
    trials = {"base": BASE}
    for ratio in ratios:
        names = ("text_weight", "image_weight", "margin_weight")
        weights: dict[str, Any] = {name: weight for name, weight in zip(names, ratio, strict=True) if weight != 1.0}
        trials[" : ".join(f"{weight:g}" for weight in ratio)] = mfpo(**weights)
    ours = "1 : 0.2 : 1"
    others = [row for row in trials if row not in ("base", "1 : 1 : 1")]
    claims = [Claim("1 : 1 : 1", row, is_papers=row != ours) for row in others]
    claims += [Claim("1 : 1 : 1", row, "cover", is_papers=False) for row in others]
    notes = ["That 1 : 1 : 1 is best is known from the paper, but not in which figure."]
    table = fill(study, trials, paper=PAPER["table6"], claims=claims)
    return Result("Table 6: the weights of the terms", table, notes=notes)


@experiment("table7")
def table7(study: Study) -> Result:
    """Training from easy to hard against all records at once."""
    trials = {"base": BASE, "end to end": mfpo(curriculum=False), "easy to hard": mfpo()}
    claims = [claim("table7", "easy to hard", "end to end", figure) for figure in ("chair_s", "mmhal_score", "cover")]
    return Result("Table 7: easy to hard", fill(study, trials, paper=PAPER["table7"], claims=claims))


@experiment("table8")
def table8(study: Study) -> Result:
    """Where the noise of the rejected image is: everywhere, in a fifth of the image, in the key regions; and a crop."""
    pairs = (("region", "random 20 %"), ("random 20 %", "global"), ("region", "global"))
    claims = [claim("table8", *pair, figure) for figure in ("chair_s", "cover") for pair in pairs]
    trials = {"base": BASE, **corruption_trials(Data()), "mDPO's crop": mfpo(Data(corruption="crop"))}
    return Result("Table 8: where the noise is", fill(study, trials, paper=PAPER["table8"], claims=claims))


@experiment("table9")
def table9(study: Study) -> Result:
    """Another source of preferences: two sampled answers, ranked, in place of corrected ones."""
    study.check_ranked()
    ranked = Data(source="ranked")
    trials = {
        "base": BASE,
        "DPO": trained("dpo", ranked),
        "mDPO": trained("mdpo", replace(ranked, corruption="crop")),
        "MFPO": mfpo(ranked),
        "mDPO, corrected": trained("mdpo"),
        "MFPO, corrected": mfpo(),
    }
    claims = [claim("table9", "MFPO", "mDPO", figure) for figure in ("chair_s", "chair_i", "mmhal_score", "cover")]
    return Result("Table 9: another preference source", fill(study, trials, paper=PAPER["table9"], claims=claims))


@experiment("rates")
def rates(study: Study) -> Result:
    """Every method at every rate, on validation scenes; a rate is as good as the harmonic mean of 100 - CHAIR_s and
    Cover, so that silence does not win."""
    names = {(method, rate): f"{method}, {rate:g}" for method in RATES for rate in CANDIDATES}
    trials = {name: trained(method, learning_rate=rate) for (method, rate), name in names.items()}
    table = fill(study, {"base": BASE, **trials})

    def harmonic_mean(method: str, rate: float) -> float:
        row = table.rows[names[method, rate]]
        right, cover = 100 - row["chair_s"].mean, row["cover"].mean
        return 2 * right * cover / (right + cover)

    best = {method: max(CANDIDATES, key=partial(harmonic_mean, method)) for method in RATES}
    notes = [
        f"{method}: {rate:g} is best{' (the edge)' if rate in (CANDIDATES[0], CANDIDATES[-1]) else ''}; "
        f"the tables use {RATES[method]:g}."
        for method, rate in best.items()
    ]
    notes.append("The best rate has the highest harmonic mean of 100 - CHAIR_s and Cover: silence does not win.")
    notes.append(f"Seed {study.seeds[0]} is that of the validation scenes; tables have those below it.")
    return Result("Learning rates, on validation scenes", table, notes=notes)
