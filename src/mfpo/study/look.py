"""When it pays to look: objectives and rejected images beside text + margin, on the model of each book.

Each objective is trained at its own rate, the best of the same few on validation scenes.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from mfpo.files import read_rows
from mfpo.models import load_model
from mfpo.picturebook.book import ASKED_SCENES
from mfpo.picturebook.menus import BOOK as CONTEXT
from mfpo.processors import load_processor
from mfpo.study import VALIDATION_SEED
from mfpo.study.conflicts import FIGURES, counts, same_without_regions, unusual_colours
from mfpo.study.experiments import BASE, experiment, mfpo, terms
from mfpo.study.picturebook import PictureBookScale
from mfpo.study.questions import by_size, steps_note
from mfpo.study.results import Claim, Result, Table, fill, table_of, worth
from mfpo.study.statistics import Array, estimate
from mfpo.study.study import NotOnScale, Study
from mfpo.study.trials import Data, Trial, trained

# What every other row is compared with.
PLAIN = "text + margin"

# Numbers of pairs beside all that there are.
_SIZES = (60, 150)

_RATES = (1e-5, 3e-5, 1e-4, 3e-4)
_VALIDATION_SCENES = 300

# The figures in which each row is compared with text + margin.
_COMPARED = ("chair_s", "cover", "existence_accuracy")

_COMPARED_NOTE = (
    f"Each row is compared with {PLAIN} with as many pairs (twice the pairs: with half as many; counterfactuals as "
    "pairs are twice as many records); it is better or worse where the 95 % interval of the difference excludes 0, and "
    "not settled elsewhere."
)

# What is trained on other bases, too.
_ON_ALL_BASES = (
    PLAIN,
    "MFPO",
    "SymMPO",
    "counterfactual",
    f"{PLAIN}, counterfactuals as pairs",
    f"{PLAIN}, twice the pairs",
)

# More than any scene has.
_ALL_THINGS = 9


class LookScale(PictureBookScale):
    """A picture book with the figures that tell whether a model looks; `pairs` is the most that rows are named after.

    A control has twice as many.
    """

    def __init__(
        self, folder: Path, *, book: str, scenes: int, pairs: int, split: str = "heldout", pretrained: int = 0
    ) -> None:
        super().__init__(folder, book=book, split=split, scenes=scenes, pairs=2 * pairs, pretrained=pretrained)
        self.figures = {**super().figures, **self.question_types, **FIGURES}
        self.context = {**self.context, "figures": list(FIGURES)}

    def score(self, model: Path, trial: Trial, seed: int) -> dict[str, Array]:
        """The counts of each figure, scene by scene in the order of the book, or pair by pair."""
        book_counts = super().score(model, trial, seed)
        scenes = self.scored_scenes(seed)
        captions = self.answers_folder(trial, seed) / "captions.jsonl"
        asked = scenes[:ASKED_SCENES]
        return book_counts | {
            "unusual_colours": unusual_colours(load_model(model), load_processor(model), self.book, asked),
            "counts": counts([row["text"] for _, row in read_rows(captions)], scenes),
            "same_without_regions": same_without_regions(model, self.scored_pairs(seed)),
        }


@experiment("look")
def look(study: Study) -> Result:
    """When it pays to look, for a model that sees well and hallucinates from habit."""
    return _look(study, "picturebook", "a model that hallucinates from habit")


@experiment("look-context")
def look_context(study: Study) -> Result:
    """The same for a model that reads the context more than the objects."""
    return _look(study, CONTEXT, "a model that reads the context")


@experiment("look-bases")
def look_bases(study: Study) -> Result:
    """The main rows of `look-context` on a model of its book pretrained with each seed; seed 0's is shipped."""
    pairs, rates = study.scale.pairs, _best_rates(study, CONTEXT)
    rows = {kind: (kind, trial) for kind, trial in objectives(pairs).items()} | variants(pairs)
    trials = {"base": BASE} | {
        row: trial.changed(learning_rate=rates[of]) for row, (of, trial) in rows.items() if row in _ON_ALL_BASES
    }
    bases = [study.on(_scale(study, CONTEXT, pretrained=seed), [seed]) for seed in study.seeds]
    scores = {row: [counts for base in bases for counts in base.scores(trial)] for row, trial in trials.items()}
    points: dict[str, dict[float, str]] = {row: {pairs: row} for row in _ON_ALL_BASES}
    table = table_of(scores, bases[0].scale.figures, _against_plain(points))
    by_seed = [
        ", ".join(f"{table.columns[figure]} {estimate([counts], figure).mean:.1f}" for figure in _COMPARED)
        for counts in scores["base"]
    ]
    notes = [
        _COMPARED_NOTE,
        f"{pairs} pairs. Each seed has a base of its own, and pairs, training order and scored scenes of its own.",
        f"Learning rates are those of look-context, chosen on the shipped model: {_told(rates)}.",
        steps_note(bases[0], trials, points),
        f"The bases, by seed: {'; '.join(by_seed)}.",
    ]
    return Result(
        "When it pays to look: other bases", _beside_plain(table), notes=notes, lead=_lead(study, table, points)
    )


def _look(study: Study, book: str, base: str) -> Result:
    pairs, rates = study.scale.pairs, _best_rates(study, book)
    study = study.on(_scale(study, book))
    trials = {"base": BASE}
    points: dict[str, dict[float, str]] = {}
    for size in [*(size for size in _SIZES if size < pairs), pairs]:
        for kind, trial in objectives(size).items():
            trials[f"{kind}, {size} pairs"] = trial.changed(learning_rate=rates[kind])
            points.setdefault(kind, {})[size] = f"{kind}, {size} pairs"
    for kind, (of, trial) in variants(pairs).items():
        trials[f"{kind}, {pairs} pairs"] = trial.changed(learning_rate=rates[of])
        points[kind] = {pairs: f"{kind}, {pairs} pairs"}
    table = fill(study, trials, claims=_against_plain(points))
    notes = [
        _COMPARED_NOTE,
        f"Learning rates, each the best of {len(_RATES)} with {pairs} pairs on {_VALIDATION_SCENES} validation "
        f"scenes: {_told(rates)}. With fewer pairs an objective with a lower rate has moved less.",
        "The other rows have the rate of the objective that they vary.",
        steps_note(study, trials, points),
    ]
    plots, lead = by_size(study, table, points), _lead(study, table, points)
    return Result(f"When it pays to look: {base}", _beside_plain(table), plots, notes, lead)


def _scale(
    study: Study, book: str, *, scenes: int | None = None, split: str = "heldout", pretrained: int = 0
) -> LookScale:
    """The scale of a book, as large as the study's; raises NotOnScale where that is none of a picture book."""
    if not isinstance(study.scale, PictureBookScale):
        raise NotOnScale("look needs images in which exactly one thing differs; use the picture book")
    scenes, pairs = scenes or study.scale.scenes, study.scale.pairs
    return LookScale(study.out / book, book=book, scenes=scenes, pairs=pairs, split=split, pretrained=pretrained)


def _against_plain(points: Mapping[str, Mapping[float, str]]) -> list[Claim]:
    """That each row is better than text + margin with as many pairs, which we ask."""
    return [
        Claim(row, points[PLAIN][size], figure, is_papers=False)
        for figure in _COMPARED
        for kind, rows in points.items()
        if kind != PLAIN
        for size, row in rows.items()
    ]


def _lead(study: Study, table: Table, points: Mapping[str, Mapping[float, str]]) -> list[str]:
    """What the page begins with."""
    if len(study.seeds) == 1:
        return ["One seed settles nothing."]
    return [*_never_worse(table, points), *_settled(table)]


def objectives(pairs: int) -> dict[str, Trial]:
    """What is trained at each number of pairs; counterfactuals have every object of the answer replaced."""
    data = Data(pairs=pairs)
    edited = replace(data, corruption="counterfactual", edit="replace", edits=_ALL_THINGS)
    return {
        "DPO": trained("dpo", data),
        PLAIN: mfpo(data, **terms("text", "margin")),
        "MFPO": mfpo(data),
        "MFPO, image weight 0.2": mfpo(data, image_weight=0.2),
        "MFPO, joint": mfpo(data, image_loss="joint"),
        "MFPO, hinge": mfpo(data, image_loss="hinge"),
        "CHiP": trained("chip", replace(data, corruption="global")),
        "SymMPO": trained("symmpo", edited),
        "S-VCO": trained("s-vco", edited),
        # From easy to hard, as text + margin.
        "counterfactual": trained("counterfactual", edited, curriculum=True),
    }


def variants(pairs: int) -> dict[str, tuple[str, Trial]]:
    """Other rejected images, and as much more training as a counterfactual is, each with the objective it varies."""
    kinds = objectives(pairs)
    data, edited = kinds["MFPO"].data, kinds["counterfactual"].data
    others = {"whole image": "global", "crop": "crop", "erased": "erase"}
    images = {name: replace(data, corruption=kind) for name, kind in others.items()} | {"counterfactual": edited}
    rows = {f"MFPO, {name}": ("MFPO", replace(kinds["MFPO"], data=images[name])) for name in images}
    rows |= {
        f"{kind}, counterfactual": (kind, replace(kinds[kind], data=edited))
        for kind in ("MFPO, image weight 0.2", "MFPO, joint", "MFPO, hinge", "CHiP")
    }
    rows["counterfactual, one edit"] = (
        "counterfactual",
        replace(kinds["counterfactual"], data=replace(edited, edit="any", edits=1)),
    )
    return rows | {
        f"{PLAIN}, twice the epochs": (PLAIN, kinds[PLAIN].changed(epochs=6)),
        f"{PLAIN}, twice the pairs": (PLAIN, replace(kinds[PLAIN], data=replace(data, pairs=2 * pairs))),
        f"{PLAIN}, counterfactuals as pairs": (
            PLAIN,
            replace(kinds[PLAIN], data=replace(edited, counterfactuals=True)),
        ),
        f"{PLAIN}, twice the margin": (PLAIN, kinds[PLAIN].changed(margin_weight=2.0)),
    }


def _best_rates(study: Study, book: str) -> dict[str, float]:
    """The rate at which each objective is worth most on validation scenes, with the book's shipped model."""
    kinds = objectives(study.scale.pairs)
    scale = _scale(study, book, scenes=_VALIDATION_SCENES, split="validation")
    study = study.on(scale, [VALIDATION_SEED])

    def worth_at(trial: Trial, rate: float) -> float:
        scores = study.scores(trial.changed(learning_rate=rate))
        return worth({figure: estimate(scores, figure) for figure in ("chair_s", "cover")})

    return {kind: max(_RATES, key=partial(worth_at, trial)) for kind, trial in kinds.items()}


def _told(rates: Mapping[str, float]) -> str:
    return "; ".join(f"{kind}: {rate:g}" for kind, rate in rates.items())


def _settled(table: Table) -> list[str]:
    """For each figure the rows that are better than text + margin and those that are worse, by their interval."""
    sentences = []
    for figure in _COMPARED:
        verdicts = [verdict for verdict in table.verdicts if verdict.claim.figure == figure]
        settled = [verdict for verdict in verdicts if verdict.word == "settled"]
        better = [verdict.claim.better for verdict in settled if verdict.gain.mean > 0]
        worse = [verdict.claim.better for verdict in settled if verdict.gain.mean < 0]
        sentences.append(
            f"{table.columns[figure]}. Better than {PLAIN}: {'; '.join(better) or 'none'}. "
            f"Worse: {'; '.join(worse) or 'none'}. Not settled: {len(verdicts) - len(settled)} of {len(verdicts)}."
        )
    return sentences


def _beside_plain(table: Table) -> Table:
    """The table with how much better each row is than text + margin, in place of as many verdicts."""
    rows = {row: dict(figures) for row, figures in table.rows.items()}
    for verdict in table.verdicts:
        rows[verdict.claim.better][f"{verdict.claim.figure}_gain"] = verdict.gain
    gains = {f"{figure}_gain": f"better than {PLAIN} in {table.columns[figure]} by" for figure in _COMPARED}
    return replace(table, rows=rows, columns={**table.columns, **gains}, verdicts=())


def _never_worse(table: Table, points: Mapping[str, Mapping[float, str]]) -> list[str]:
    """Which objectives beat text + margin in a figure that is compared and are worse in none, by their intervals."""
    gains = {(verdict.claim.better, verdict.claim.figure): verdict.gain for verdict in table.verdicts}
    compared = ", ".join(table.columns[figure] for figure in _COMPARED)
    notes = []
    for kind, rows in points.items():
        sizes = {row: size for size, row in rows.items()}
        kind_gains = {key: gain for key, gain in gains.items() if key[0] in sizes}
        if not kind_gains or any(gain.high < 0 for gain in kind_gains.values()):
            continue
        better = [
            f"{table.columns[figure]} ({sizes[row]:g} pairs)"
            for (row, figure), gain in kind_gains.items()
            if gain.low > 0
        ]
        if better:
            notes.append(f"{kind} beats {PLAIN} in {', '.join(better)}, and is worse in none of {compared}.")
    return notes or [f"No objective beats {PLAIN} in one of {compared} without being worse in another."]
