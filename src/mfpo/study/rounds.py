"""Rounds on the model's own answers: the experiment `rounds`.

The paper says that "the feedback distribution is iteratively updated". Here each round's pairs are answers of the model
that the round before trained, checked by the book's truth or by a checker that errs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import track

from mfpo.files import read_json
from mfpo.pairs.ask import open_asker
from mfpo.pairs.run import pairs_into
from mfpo.pairs.settings import PairsSettings
from mfpo.picturebook.questions import PictureBookQuestions
from mfpo.sources import open_source
from mfpo.study.erring import BookCheck
from mfpo.study.experiments import BASE, experiment
from mfpo.study.picturebook import PictureBookScale
from mfpo.study.questions import steps_of
from mfpo.study.results import Claim, Plot, Result, Table, line, table_of
from mfpo.study.statistics import Scores
from mfpo.study.study import NotOnScale, Study, is_trained
from mfpo.study.training_data import Rows, ranked_pairs
from mfpo.study.trials import Trial, trained
from mfpo.train.run import run as train

_ROUNDS = 3
# Scenes that are asked about for each pair that is wanted: the better the model, the fewer have a false claim.
_SCENES_A_PAIR = 6


@dataclass(frozen=True)
class Way:
    """A method trained for some rounds, with `1 / rounds` of the pairs in each; `error` is the checker's."""

    method: str
    rounds: int = _ROUNDS
    error: float = 0.0

    @property
    def name(self) -> str:
        """What the folders of its rounds are called."""
        return f"{self.method}-{self.rounds}-{self.error:g}"

    @property
    def title(self) -> str:
        """What pages call it."""
        return self.method.upper() + (f", {100 * self.error:g} % of verdicts wrong" if self.error else "")

    @property
    def rows(self) -> dict[int, str]:
        """What the table calls its rounds, by number."""
        return {number: f"{self.title}, round {number} of {self.rounds}" for number in range(1, self.rounds + 1)}

    @property
    def last(self) -> str:
        """What the table calls its last round."""
        return self.rows[self.rounds]

    def trial(self, number: int) -> Trial:
        """What its round `number` is known by."""
        return replace(trained(self.method), other=(("round", number), ("way", self.name)))


_DPO, _DPO_ONCE = Way("dpo"), Way("dpo", rounds=1)
_MFPO, _MFPO_ONCE = Way("mfpo"), Way("mfpo", rounds=1)
_ERRING = [Way("mfpo", error=error) for error in (0.05, 0.2)]


@experiment("rounds")
def rounds(study: Study) -> Result:
    """Three rounds on own answers against one with as many pairs, MFPO and DPO, and checkers that err."""
    if not isinstance(study.scale, PictureBookScale):
        raise NotOnScale("rounds asks the picture book, which alone knows what is in a scene")
    ways = [_DPO, _DPO_ONCE, _MFPO, _MFPO_ONCE, *_ERRING]
    scores: dict[str, list[Scores]] = {"base": study.scores(BASE)}
    for way in ways:
        for number, row in way.rows.items():
            scores[row] = study.scores(way.trial(number), partial(_model, study, way, number))
    table = table_of(scores, study.scale.figures, _claims())
    plots = [_plot(table, figure) for figure in ("chair_s", "cover")]
    return Result("Rounds on the model's own answers", table, plots, _notes(study, ways))


def _claims() -> list[Claim]:
    """What is asked of the rows: nothing that the paper measured."""
    compared = [(_DPO, _DPO_ONCE), (_MFPO, _MFPO_ONCE), (_MFPO, _DPO), *((_MFPO, way) for way in _ERRING)]
    rows = [(one.last, other.last) for one, other in compared] + [(_ERRING[-1].last, "base")]
    return [Claim(*pair, figure, is_papers=False) for figure in ("chair_s", "cover") for pair in rows]


def _plot(table: Table, figure: str) -> Plot:
    """A figure round by round, from the base on."""
    title = table.columns[figure]
    by_way = {
        way.title: line(table, dict(enumerate(["base", *way.rows.values()])), figure) for way in (_DPO, _MFPO, *_ERRING)
    }
    return Plot(title, "round", f"{title}, %", by_way)


def _notes(study: Study, ways: Sequence[Way]) -> list[str]:
    """How the pairs were made, what share of the questions had one, and where there were fewer than there should be."""
    notes = [f"{study.scale.pairs} pairs in all on each way, corrected by the rules of mfpo pairs."]
    steps, shares, lacking = [], [], []
    for way in ways:
        wanted = study.scale.pairs // way.rounds
        name, trial = f"{way.title}, {way.rounds} x {wanted} pairs", way.trial(1)
        of_round = steps_of(study, replace(trial, data=replace(trial.data, pairs=wanted)))
        steps.append(f"{name}: {way.rounds * of_round}")
        summaries = {number: [_summary(study, way, number, seed) for seed in study.seeds] for number in way.rows}
        by_round = [sum(s["paired"] for s in each) / sum(s["answered"] for s in each) for each in summaries.values()]
        shares.append(f"{name}: {', '.join(f'{100 * share:.1f}' for share in by_round)} %")
        lacking += [
            f"{way.rows[number]}, seed {seed}: {summary['paired']} of {wanted}"
            for number, each in summaries.items()
            for seed, summary in zip(study.seeds, each, strict=True)
            if summary["paired"] < wanted
        ]
    notes.append(f"Steps of training in all: {'; '.join(steps)}.")
    notes.append(
        f"Questions with a pair, as an answer was judged to have a false claim, by round: {'; '.join(shares)}."
    )
    if lacking:
        notes.append(f"Trained on fewer pairs, as too few answers had a false claim: {'; '.join(lacking)}.")
    return notes


def _summary(study: Study, way: Way, number: int, seed: int) -> dict[str, Any]:
    """The summary of the pairs of a round."""
    name = f"pairs-{way.trial(number).key(study.scale.trained_on)}-{seed}"
    summary: dict[str, Any] = study.kept(name, lambda: read_json(_pairs(study, way, number, seed) / "summary.json"))
    return summary


def _model(study: Study, way: Way, number: int, seed: int) -> Path:
    """The model after a round, the base's after none; trained unless it has been."""
    if number == 0:
        return study.model(BASE, seed)
    folder, trial = _folder(study, way, number, seed), study.with_rate(way.trial(number))
    settings = study.settings(trial, seed)
    if not is_trained(folder / "run", settings):
        before = _model(study, way, number - 1, seed)
        source = Rows(open_source(_pairs(study, way, number, seed)), 0, study.scale.pairs // way.rounds)
        ranked = ranked_pairs(source, folder / "built", trial.data, seed=seed, regions="dataset", model=before)
        train(ranked, before, folder / "run", settings)
    return folder / "run" / "model"


def _pairs(study: Study, way: Way, number: int, seed: int) -> Path:
    """The pairs of the model before a round, on scenes of the round's own; those of the base serve all methods."""
    asked = way if number > 1 else replace(way, method="base")
    folder = _folder(study, asked, number, seed) / "own"
    if not folder.exists():
        scenes = _SCENES_A_PAIR * study.scale.pairs // way.rounds
        questions = PictureBookQuestions(scenes, seed=(seed + 30 * number) % 100)
        settings = PairsSettings(
            pairing="corrected", temperature=1.0, samples=2, max_new_tokens=128, batch_size=32, seed=seed
        )
        asker = open_asker(_model(study, way, number - 1, seed), settings)
        pairs_into(
            questions, asker, BookCheck(way.error), folder, settings, progress=lambda rows: track(rows, "asking")
        )
    return folder


def _folder(study: Study, way: Way, number: int, seed: int) -> Path:
    return study.out / "rounds" / f"{way.name}-{study.scale.pairs}-{seed}" / f"round{number}"
