"""The paper's tables as the trials that they are made of; its figures are in `figures`, our own in `questions`."""

from dataclasses import replace
from functools import partial
from typing import Any

from mfpo.picturebook.rates import CANDIDATES, RATES
from mfpo.study.experiments import BASE, corruption_trials, experiment, mfpo, term_trials
from mfpo.study.paper import PAPER
from mfpo.study.results import Result, claim, fill, worth
from mfpo.study.statistics import difference, told
from mfpo.study.study import NotOnScale, Study
from mfpo.study.trials import Data, Trial, trained

# Rows of models that are never trained here.
_OTHERS_NOTE = (
    "Models that are not trained here get numbers if `others` in the config for the paper's scale lists them; "
    "LLaVA-v1.6-7B and LLaVA-v1.5-13B have files of their own in configs/study."
)


def table1_trials(stands_for: str) -> dict[str, Trial]:
    """The trials of the rows of Table 1 that are made from its row `stands_for`; all methods, for LLaVA-v1.5-7B."""
    ends = {stands_for: BASE, f"{stands_for} + MFPO": mfpo()}
    if stands_for == "LLaVA-v1.5-13B":
        return {**ends, "+ RLHF-V": trained("ddpo"), "+ HALVA (13B)": trained("halva")}
    if stands_for != "LLaVA-v1.5-7B":
        return ends
    methods = ("hacl", "povid", "dpo", "mdpo", "eos", "ha-dpo", "halva")
    decoders = {f"+ {decode.upper()}": replace(BASE, decode=decode) for decode in ("opera", "vcd")}
    return {
        **ends,
        **{f"+ {'mDPO' if method == 'mdpo' else method.upper()}": trained(method) for method in methods},
        **decoders,
        "RLHF-V's dense DPO": trained("ddpo"),
    }


@experiment("table1")
def table1(study: Study) -> Result:
    """All methods, trained on the same records, each at its own validated rate; and two ways to decode."""
    joint = f"{study.scale.stands_for} + MFPO"
    trials = table1_trials(study.scale.stands_for)
    opera = _opera_note(study, trials["+ OPERA"]) if "+ OPERA" in trials else []
    # Where OPERA has a note, it describes only some of the scenes.
    rivals = [row for row in trials if row != joint and not (opera and row == "+ OPERA")]
    figures = ("chair_s", "chair_i", "cover", "mmhal_score")
    claims = [claim("table1", joint, rival, figure) for rival in rivals for figure in figures]
    table = fill(study, {**trials, **study.scale.others}, paper=PAPER["table1"], claims=claims)
    notes = [
        *opera,
        "VCD samples at temperature 1, as its authors do, the others take the likeliest token; OPERA has 5 beams.",
        "Where a method is trained on less than its authors ask for, its page in the docs (methods) says so.",
        "The rows from GPT-4V to LLaVA-v1.5-13B + MFPO are the paper's of 13B and more.",
        _OTHERS_NOTE,
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
        raise NotOnScale("table2 needs types of questions; name MMHal-Bench, or use the picture book")
    base = study.scale.stands_for
    joint = "+ MFPO" if base in PAPER["table2"].rows else f"{base} + MFPO"
    trials = {base: BASE, joint: mfpo(), "DPO": trained("dpo"), "mDPO": trained("mdpo"), **study.scale.others}
    table = fill(study, trials, columns=study.scale.question_types, paper=PAPER["table2"])
    return Result("Table 2: by type of question", table, notes=[_OTHERS_NOTE])


@experiment("table3")
def table3(study: Study) -> Result:
    """General questions, after training on each source of preferences: nothing should be lost."""
    names = ("llava_bench_conversation", "llava_bench_captioning", "existence_accuracy", "cover", "chair_s", "length")
    columns = {name: title for name, title in study.scale.figures.items() if name in names}
    if not {"llava_bench_conversation", "existence_accuracy"} & columns.keys():
        raise NotOnScale("table3 needs general questions; name LLaVA-Bench, or use the picture book")
    ranked, human = Data(source="ranked"), Data(source="human")
    trials = {
        "LLaVA-1.5": BASE,
        "+ VLFeedback": trained("dpo", ranked),
        "+ Human-Preference": trained("dpo", human),
        "+ RLHF-V": trained("dpo"),
        "Ours (MFPO)": mfpo(),
        "MFPO, VLFeedback": mfpo(ranked),
        "MFPO, Human-Preference": mfpo(human),
    }
    pairs = [("Ours (MFPO)", "LLaVA-1.5"), ("Ours (MFPO)", "+ RLHF-V")]
    pairs += [("+ RLHF-V", "+ VLFeedback"), ("+ VLFeedback", "+ Human-Preference")]
    claims = [claim("table3", *pair, name) for name in names[:-1] for pair in pairs]
    notes = [
        "The rows with + are DPO on four sources of pairs. On the picture book RLHF-V's are corrected answers, "
        "VLFeedback's two samples of which the one that names nothing absent is chosen, and Human-Preference's the "
        "same with one pair in six the wrong way round, as people disagree.",
    ]
    table = fill(study, trials, columns=columns, paper=PAPER["table3"], claims=claims)
    return Result("Table 3: general questions", table, notes=notes)


@experiment("table4")
def table4(study: Study) -> Result:
    """The loss's terms, alone and together."""
    joint = "text + image + margin"
    rivals = ("text + image", "text + margin", "image + margin")
    figures = ("chair_s", "chair_i", "mmhal_score", "cover")
    claims = [claim("table4", joint, row, figure) for figure in figures for row in rivals]
    trials = {"base": BASE, **term_trials(Data())}
    return Result("Table 4: the terms of the loss", fill(study, trials, paper=PAPER["table4"], claims=claims))


@experiment("table5")
def table5(study: Study) -> Result:
    """The reward that the chosen answer has to exceed."""
    trials = {"base": BASE, "eta 0": mfpo(), "eta 0.2": mfpo(eta=0.2), "eta 0.4": mfpo(eta=0.4)}
    figures = ("chair_s", "chair_i", "mmhal_score")
    claims = [claim("table5", "eta 0", row, figure) for figure in figures for row in ("eta 0.2", "eta 0.4")]
    return Result("Table 5: the margin", fill(study, trials, paper=PAPER["table5"], claims=claims))


@experiment("table6")
def table6(study: Study) -> Result:
    """The weights of text, image and margin term; those of 2 and 0.2 are ours."""
    papers = ((1.0, 1.0, 1.0), (1.0, 5.0, 1.0), (5.0, 1.0, 1.0), (1.0, 1.0, 5.0))
    ratios = (*papers, (2.0, 1.0, 1.0), (1.0, 2.0, 1.0), (1.0, 1.0, 2.0), (1.0, 0.2, 1.0))
    trials = {"base": BASE}
    for ratio in ratios:
        names = ("text_weight", "image_weight", "margin_weight")
        weights: dict[str, Any] = {name: weight for name, weight in zip(names, ratio, strict=True) if weight != 1.0}
        trials[" : ".join(f"{weight:g}" for weight in ratio)] = mfpo(**weights)
    others = [row for row in trials if row not in ("base", "1 : 1 : 1")]
    figures = ("chair_s", "chair_i", "mmhal_score", "cover")
    claims = [claim("table6", "1 : 1 : 1", row, figure) for figure in figures for row in others]
    table = fill(study, trials, paper=PAPER["table6"], claims=claims)
    return Result("Table 6: the weights of the terms", table)


@experiment("table7")
def table7(study: Study) -> Result:
    """Training from easy to hard against all records at once."""
    trials = {"base": BASE, "end to end": mfpo(curriculum=False), "easy to hard": mfpo()}
    figures = ("chair_s", "chair_i", "mmhal_score", "cover")
    claims = [claim("table7", "easy to hard", "end to end", figure) for figure in figures]
    return Result("Table 7: easy to hard", fill(study, trials, paper=PAPER["table7"], claims=claims))


@experiment("table8")
def table8(study: Study) -> Result:
    """Where the noise of the rejected image is: everywhere, in a fifth of the image, in the key regions; and a crop."""
    pairs = (("region", "random 20 %"), ("random 20 %", "global"), ("region", "global"))
    figures = ("chair_s", "chair_i", "mmhal_score", "cover")
    claims = [claim("table8", *pair, figure) for figure in figures for pair in pairs]
    trials = {"base": BASE, **corruption_trials(Data()), "mDPO's crop": mfpo(Data(corruption="crop"))}
    return Result("Table 8: where the noise is", fill(study, trials, paper=PAPER["table8"], claims=claims))


@experiment("table9")
def table9(study: Study) -> Result:
    """mDPO and MFPO on the same data: corrected answers (RLHF-V's), and two sampled ones, ranked (Silkie's)."""
    ranked = Data(source="ranked")
    trials = {
        "base": BASE,
        "mDPO (RLHF-V)": trained("mdpo"),
        "MFPO (RLHF-V)": mfpo(),
        "mDPO (Silkie)": trained("mdpo", replace(ranked, corruption="crop")),
        "MFPO (Silkie)": mfpo(ranked),
        "DPO (RLHF-V)": trained("dpo"),
        "DPO (Silkie)": trained("dpo", ranked),
    }
    figures = ("chair_s", "chair_i", "mmhal_score", "cover")
    claims = [
        claim("table9", f"MFPO ({source})", f"mDPO ({source})", figure)
        for source in ("RLHF-V", "Silkie")
        for figure in figures
    ]
    table = fill(study, trials, paper=PAPER["table9"], claims=claims)
    return Result("Table 9: the same data for mDPO and MFPO", table)


@experiment("rates")
def rates(study: Study) -> Result:
    """Every method at every rate, on validation scenes; a rate is as good as the harmonic mean of 100 - CHAIR_s and
    Cover, so that silence does not win."""
    names = {(method, rate): f"{method}, {rate:g}" for method in RATES for rate in CANDIDATES}
    trials = {name: trained(method, learning_rate=rate) for (method, rate), name in names.items()}
    table = fill(study, {"base": BASE, **trials})

    def worth_at(method: str, rate: float) -> float:
        return worth(table.rows[names[method, rate]])

    best = {method: max(CANDIDATES, key=partial(worth_at, method)) for method in RATES}
    notes = [
        f"{method}: {rate:g} is best{' (the edge)' if rate in (CANDIDATES[0], CANDIDATES[-1]) else ''}; "
        f"the tables use {RATES[method]:g}."
        for method, rate in best.items()
    ]
    notes.append("The best rate has the highest harmonic mean of 100 - CHAIR_s and Cover: silence does not win.")
    notes.append(f"Seed {study.seeds[0]} is that of the validation scenes; tables have those below it.")
    return Result("Learning rates, on validation scenes", table, notes=notes)
