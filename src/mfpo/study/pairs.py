"""Preference pairs of a trial, with their rejected images, ranked from easy to hard."""

from pathlib import Path
from typing import Any

from rich.progress import track

from mfpo.align.curriculum import RankSettings, rank
from mfpo.build.pipeline import BuildSettings, build
from mfpo.build.regions import open_segmenter
from mfpo.sources import Source
from mfpo.study.trials import Data


def ranked_pairs(source: Source, out: Path, data: Data, *, seed: int, regions: str, model: Path) -> Path:
    """Build the rows of `source` into `out` as `data` says and rank them by `model`, each unless it has been done.

    Returns the folder of the ranked pairs.
    """
    ranked = out.with_name(f"{out.name}-ranked")
    if not ranked.exists():
        if not out.exists():
            made: dict[str, Any] = {name: getattr(data, name) for name in ("corruption", "noise_step", "schedule")}
            settings = BuildSettings(seed=seed, **made)
            segmenter = open_segmenter(regions, settings) if settings.needs_regions else None
            build(source, out, settings, segmenter, progress=lambda rows: track(rows, "building"))
        rank(out, model, ranked, RankSettings())
    return ranked
