"""Section 4.3's two checks, which the authors made by hand: keywords, and the regions that they are mapped to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mfpo.build.keywords import rank_keywords
from mfpo.build.mapping import check_regions
from mfpo.build.regions import open_segmenter
from mfpo.build.regions.coco import CocoRegions
from mfpo.build.settings import BuildSettings
from mfpo.records import answer_text
from mfpo.study.experiments import experiment
from mfpo.study.paper import PAPER
from mfpo.study.results import Result, Table
from mfpo.study.statistics import Scores, estimate
from mfpo.study.study import Checked, Study
from mfpo.study.training_data import Rows
from mfpo.study.trials import Trial

_NOTE = "Judged by COCO's masks, or by the scenes of the picture book; the paper's authors judged 100 examples by hand."


@experiment("keywords")
def keywords(study: Study) -> Result:
    """How many keywords are objects of their image, and how often the best one is."""
    counts = [_checked(study, "keywords", seed, _right_keywords) for seed in study.seeds]
    rows = {"keywords": "all", "best keyword": "best"}
    scores = {row: [{"right": of_seed[kind]} for of_seed in counts] for row, kind in rows.items()}
    notes = [_NOTE, "COCO has 80 kinds of objects: a keyword for another thing that is there counts as wrong."]
    return Result("Section 4.3: keywords", _table("keywords", "right", "right, %", scores), notes=notes)


@experiment("regions")
def regions(study: Study) -> Result:
    """How many keywords of objects that are there are mapped to the right region."""
    counts = [_checked(study, "regions", seed, _right_regions) for seed in study.seeds]
    scores = {row: [{"mapped": of_seed[row]} for of_seed in counts] for row in counts[0]}
    notes = [
        "The paper says above 90 % of SAM and above 95 % of LISA.",
        _NOTE,
        "A region is right when its IoU with all instances of the keyword's class together is 0.5 or more; keywords of "
        "no COCO class in the image are not judged.",
    ]
    return Result("Section 4.3: regions", _table("regions", "mapped", "mapped, %", scores), notes=notes)


def _table(name: str, figure: str, title: str, scores: Mapping[str, Sequence[Scores]]) -> Table:
    rows = {row: {figure: estimate(by_seed, figure)} for row, by_seed in scores.items()}
    return Table(rows, {figure: title}, PAPER[name])


def _checked(study: Study, name: str, seed: int, check: Callable[[Checked], Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of a check, pair by pair, (pairs, 2), made unless they have been."""
    key = Trial().key(study.scale.trained_on, study.scale.checked_on)
    counts = study.kept(f"{name}-{key}-{seed}", lambda: check(study.scale.checked(seed)))
    return {row: np.array(pairs, dtype=np.float64) for row, pairs in counts.items()}


def _right_keywords(checked: Checked) -> dict[str, list[list[int]]]:
    """How many keywords of each pair name an object of its image, and how many there are: of all, and of the best."""
    annotations, settings = CocoRegions(checked.instances), BuildSettings()
    counts: dict[str, list[list[int]]] = {"all": [], "best": []}
    for number, row in enumerate(checked.pairs):
        record = checked.pairs.record(row, number)
        ranked_keywords = rank_keywords(answer_text(record["chosen"]), settings)
        path = record["images"][0]["path"] or ""
        right = [bool(annotations.objects(path, [keyword])) for keyword in ranked_keywords]
        counts["all"].append([sum(right), len(right)])
        counts["best"].append([sum(right[:1]), len(right[:1])])
    return counts


def _right_regions(checked: Checked) -> dict[str, list[list[int]]]:
    """How many keywords of each pair have the right region, and how many are judged, by segmenter."""
    annotations, settings = CocoRegions(checked.instances), BuildSettings()
    pairs = sum(1 for _ in checked.pairs)
    counts: dict[str, list[list[int]]] = {}
    for row, choice in checked.segmenters.items():
        segmenter = open_segmenter(choice, settings)
        reports = [
            check_regions(Rows(checked.pairs, number, number + 1), segmenter, annotations, settings)
            for number in range(pairs)
        ]
        counts[row] = [[report.united, report.keywords] for report in reports]
    return counts
