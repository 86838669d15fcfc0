"""Preference pairs of a trial, with their rejected images, ranked from easy to hard."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from sys import stderr
from typing import Any

from datasets import Dataset, concatenate_datasets
from rich.progress import track

from mfpo.build.pipeline import build_into
from mfpo.build.regions import open_segmenter
from mfpo.build.settings import BuildSettings
from mfpo.dataset import column, read_dataset
from mfpo.rank.run import rank
from mfpo.rank.settings import RankSettings
from mfpo.records import SourceRecord
from mfpo.settings import read_settings
from mfpo.sources import Source
from mfpo.study.trials import Data


def ranked_pairs(source: Source, out: Path, data: Data, *, seed: int, regions: str, model: Path) -> Path:
    """Build the rows of `source` into `out` as `data` says and rank them by `model`, each unless it has been done.

    Returns the folder of the ranked pairs.
    """
    ranked = out.with_name(f"{out.name}-ranked")
    if not ranked.exists():
        if not out.exists():
            settings = read_settings(BuildSettings, None, [], seed=seed, **_build_settings(data))
            segmenter = open_segmenter(regions, settings) if settings.needs_regions else None
            source = Repeated(source, data.noises) if data.noises > 1 else source
            summary = build_into(source, out, settings, segmenter, progress=lambda rows: track(rows, "building"))
            if summary["set_aside"]:
                count, of = summary["set_aside"], summary["read"]
                print(f"{count} of {of} pairs set aside, with reasons in {out / 'rejected_rows.jsonl'}", file=stderr)
        rank(_with_counterfactuals(read_dataset(out)) if data.counterfactuals else out, model, ranked, RankSettings())
    return ranked


def _with_counterfactuals(records: Dataset) -> Dataset:
    """The records, and then those of m', to which y' is the right answer and y_w a wrong one."""
    swapped = {"images": "rejected_images", "rejected_images": "images", "chosen": "rejected", "counter": "chosen"}
    others = records.remove_columns(["id", "rejected"]).rename_columns(swapped)
    ids = [f"{name}, counterfactual" for name in column(records, "id")]
    return concatenate_datasets([records, others.add_column("id", ids)])


def _build_settings(data: Data) -> dict[str, Any]:
    names = ["corruption", "noise_step", "schedule", "differing"]
    if data.corruption == "counterfactual":
        names += ["edit", "edits"]
    return {name: getattr(data, name) for name in names}


class Repeated:
    """The rows of a source, each `times` times with ids of their own, so that each gets noises of its own."""

    def __init__(self, source: Source, times: int) -> None:
        self.source, self.times = source, times
        self.name = source.name

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row for row in self.source for _ in range(self.times))

    def id(self, row: dict[str, Any], number: int) -> str:
        return f"{self.source.id(row, number // self.times)}#{number % self.times}"

    def record(self, row: dict[str, Any], number: int) -> SourceRecord:
        record = self.source.record(row, number // self.times)
        record["id"] = self.id(row, number)
        return record


class Rows:
    """The rows `start` to `stop` of a source."""

    def __init__(self, source: Source, start: int, stop: int) -> None:
        self.source, self.start, self.stop = source, start, stop
        self.name = source.name

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return islice(iter(self.source), self.start, self.stop)

    def id(self, row: dict[str, Any], number: int) -> str:
        return self.source.id(row, self.start + number)

    def record(self, row: dict[str, Any], number: int) -> SourceRecord:
        return self.source.record(row, self.start + number)
