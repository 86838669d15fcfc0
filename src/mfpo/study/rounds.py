"""Rounds on the model's own answers: the experiment `rounds`.

The paper says that "the feedback distribution is iteratively updated". Here each round's pairs are answers of the model
that the round before trained, checked by the book's truth or by a checker that errs.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from rich.progress import track

from mfpo.errors import RecordError
from mfpo.files import read_json
from mfpo.folders import write_json
from mfpo.pairs.ask import open_asker
from mfpo.pairs.check import FALSE, TRUE, Claim, Shown, Tools, checker, open_checker
from mfpo.pairs.dataset import DatasetCheck
from mfpo.pairs.run import pairs_into
from mfpo.pairs.settings import PairsSettings
from mfpo.picturebook.questions import PictureBookQuestions
from mfpo.sources import open_source
from mfpo.study.experiments import BASE, experiment
from mfpo.study.picturebook import PictureBookScale
from mfpo.study.results import Result, estimated
from mfpo.study.statistics import Scores
from mfpo.study.study import NotOnScale, Study
from mfpo.study.training_data import Rows, ranked_pairs
from mfpo.study.trials import Data, Trial, trained
from mfpo.train.run import run as train

_ROUNDS = 3
# The shares of verdicts that are flipped.
_ERRORS = (0.05, 0.2)
# Scenes that are asked about for each pair that is wanted: the better the model, the fewer have a false claim.
_SCENES_A_PAIR = 6


@checker("book")
class BookCheck(DatasetCheck):
    """The book's truth, of whose verdicts a share is flipped, the same for the same claim in the same scene."""

    def __init__(self, where: str, tools: Tools) -> None:
        self._share = float(where or 0)
        self.provenance = f"book, {self._share:g} flipped"

    def __call__(self, answers: Sequence[Shown]) -> list[tuple[Claim, ...] | RecordError]:
        """The claims of each answer."""
        all_claims = super().__call__(answers)
        return [
            claims if isinstance(claims, RecordError) else tuple(self._err(answer.asked.id, claim) for claim in claims)
            for answer, claims in zip(answers, all_claims, strict=True)
        ]

    def _err(self, id: str, claim: Claim) -> Claim:
        digest = hashlib.sha256(f"{id} {claim.object}".encode()).digest()
        if int.from_bytes(digest[:8], "big") >= self._share * 2**64:
            return claim
        return claim._replace(verdict=FALSE if claim.verdict == TRUE else TRUE)


@dataclass(frozen=True)
class Way:
    """A method trained for some rounds, with `_ROUNDS / rounds` of the pairs in each; `error` is the checker's."""

    method: str
    rounds: int = _ROUNDS
    error: float = 0.0

    @property
    def name(self) -> str:
        """What the folders of its rounds are called."""
        return f"{self.method}-{self.rounds}-{self.error:g}"

    def row(self, number: int) -> str:
        """What the table calls its round `number`."""
        about = f", {100 * self.error:g} % of verdicts wrong" if self.error else ""
        return f"{self.method.upper()}, round {number} of {self.rounds}{about}"


@experiment("rounds")
def rounds(study: Study) -> Result:
    """Three rounds on own answers against one with as many pairs and steps, MFPO and DPO, and checkers that err."""
    if not isinstance(study.scale, PictureBookScale):
        raise NotOnScale("rounds asks the picture book, which alone knows what is in a scene")
    ways = [Way(method, rounds=number) for method in ("dpo", "mfpo") for number in (_ROUNDS, 1)]
    ways += [Way("mfpo", error=error) for error in _ERRORS]
    rows = {"base": study.scores(BASE)}
    for way in ways:
        rows |= _rows(study, way)
    table = estimated(rows, study.scale.figures)
    notes = [f"{study.scale.pairs} pairs in all on each way, corrected by the rules of `mfpo pairs`."]
    lacking = [text for way in ways for text in _lacking(study, way)]
    notes += [f"Trained on fewer pairs, as too few answers had a false claim: {'; '.join(lacking)}."] if lacking else []
    return Result("Rounds on the model's own answers", table, notes=notes)


def _rows(study: Study, way: Way) -> dict[str, list[Scores]]:
    """The scores after each round of a way, by what the table calls it."""
    rows: dict[str, list[Scores]] = {}
    for seed in study.seeds:
        model = study.scale.base
        for number in range(1, way.rounds + 1):
            folder = _folder(study, way, seed, number)
            model = _train_round(study, way, seed, number, model, folder)
            rows.setdefault(way.row(number), []).append(_scores(study, way, seed, number, model, folder))
    return rows


def _folder(study: Study, way: Way, seed: int, number: int) -> Path:
    return study.out / "rounds" / f"{way.name}-{study.scale.pairs}-{seed}" / f"round{number}"


def _lacking(study: Study, way: Way) -> list[str]:
    """The rounds of a way that had fewer pairs than they should have."""
    wanted, lacking = study.scale.pairs // way.rounds, []
    for seed, number in product(study.seeds, range(1, way.rounds + 1)):
        paired = read_json(_folder(study, way, seed, number) / "own" / "summary.json")["paired"]
        if paired < wanted:
            lacking.append(f"{way.row(number)}, seed {seed}: {paired} of {wanted}")
    return lacking


def _train_round(study: Study, way: Way, seed: int, number: int, model: Path, folder: Path) -> Path:
    """The model after a round that starts from `model`, trained unless it has been."""
    run = folder / "run"
    if run.exists():
        return run / "model"
    count = study.scale.pairs // way.rounds
    pairs_folder = folder / "own"
    if not pairs_folder.exists():
        # Scenes of their own for each round.
        questions = PictureBookQuestions(_SCENES_A_PAIR * count, seed=(seed + 30 * number) % 100)
        settings = PairsSettings(
            pairing="corrected", temperature=1.0, samples=2, max_new_tokens=128, batch_size=32, seed=seed
        )
        asker = open_asker(model, settings)
        check = open_checker(f"book={way.error}", lambda: asker, pairs_folder, settings)
        pairs_into(questions, asker, check, pairs_folder, settings, progress=lambda rows: track(rows, "asking"))
    data = Data(corruption="region" if way.method == "mfpo" else "global")
    source = Rows(open_source(pairs_folder), 0, count)
    ranked = ranked_pairs(source, folder / "built", data, seed=seed, regions="dataset", model=model)
    train(ranked, model, run, study.settings(study.with_rate(Trial(method=way.method, data=data)), seed))
    return run / "model"


def _scores(study: Study, way: Way, seed: int, number: int, model: Path, folder: Path) -> Scores:
    """The counts of each figure, scene by scene, computed unless they have been."""
    path = folder / f"scores-{study.scale.context['scenes']}.json"
    if not path.exists():
        trial = replace(trained(way.method), settings=(("round", number), ("way", way.name)))
        counts = study.scale.score(model, trial, seed)
        write_json(path, {name: np.asarray(pairs).tolist() for name, pairs in counts.items()})
    return {name: np.array(pairs) for name, pairs in json.loads(path.read_text(encoding="utf-8")).items()}
