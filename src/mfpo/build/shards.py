"""What the finished shards of a build leave behind, so that a killed run can go on, and their summary at the end."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

from mfpo.errors import MfpoError
from mfpo.folders import write_json


class SetAside(TypedDict):
    """A row that could not become a record: a line of `rejected_rows.jsonl`."""

    row: int
    id: str
    reason: str


class Summary(TypedDict):
    """`summary.json`. `area_destroyed` is the mean share of an image.

    `seconds` is how long the last run took; `stage_seconds` is the time of each stage, over all shards and workers.
    """

    read: int
    written: int
    set_aside: int
    reasons: dict[str, int]
    fallback: int
    keywords_per_record: float
    area_destroyed: float
    seconds: float
    stage_seconds: dict[str, float]


class Note(TypedDict):
    """What a finished shard leaves for the summary and for a resumed run."""

    read: int
    written: int
    set_aside: list[SetAside]
    fallback: int
    keywords: int
    area: float
    seconds: dict[str, float]


def note_path(shard: Path) -> Path:
    """Where the note of a shard lies; a shard that has one is whole."""
    return shard.with_suffix(".json")


def merge_notes(folder: Path, name: str, started: float) -> Summary:
    """Merge the shards' notes into `rejected_rows.jsonl` and `summary.json`.

    Raises MfpoError when no row became a record.
    """
    notes: list[Note] = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("train-*.json"))]
    set_aside = [row for note in notes for row in note["set_aside"]]
    written = sum(note["written"] for note in notes)
    stage_seconds = sum_seconds(note["seconds"] for note in notes)
    reasons = dict(Counter(reason_kind(row["reason"]) for row in set_aside).most_common())
    summary = Summary(
        read=sum(note["read"] for note in notes),
        written=written,
        set_aside=len(set_aside),
        reasons=reasons,
        fallback=sum(note["fallback"] for note in notes),
        keywords_per_record=sum(note["keywords"] for note in notes) / max(written, 1),
        area_destroyed=sum(note["area"] for note in notes) / max(written, 1),
        seconds=round(time.monotonic() - started, 1),
        stage_seconds={stage: round(seconds, 1) for stage, seconds in stage_seconds.items()},
    )
    rejected = folder / "rejected_rows.jsonl"
    rejected.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in set_aside), encoding="utf-8")
    if not written:
        delete_notes(folder)  # the source has to be mended, and then its rows are other ones
        counts = "; ".join(f"{count} x {reason}" for reason, count in reasons.items()) or "there are none"
        raise MfpoError(f"none of the {summary['read']} rows of {name} became a record: {counts}; see {rejected}")
    write_json(folder / "summary.json", summary)
    return summary


def delete_notes(folder: Path) -> None:
    for path in folder.glob("train-*.json"):
        path.unlink()


def sum_seconds(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The seconds of each stage over all `parts`."""
    total: dict[str, float] = {}
    for part in parts:
        for stage, seconds in part.items():
            total[stage] = total.get(stage, 0.0) + seconds
    return total


def reason_kind(reason: str) -> str:
    """A reason without the names and numbers that differ from row to row, so that equal faults are counted together.

    >>> reason_kind("image 'cat.jpg' cannot be read (truncated file)"), reason_kind("line 12 of a.jsonl is empty")
    ('image cannot be read', 'line N of a.jsonl is empty')
    """
    named = r" \(.*\)|(?<=image) (['\"]).*?\1|(?<=^id) (['\"]).*?\2|(?<=masks of) (['\"]).*?\3"
    return re.sub(r"(?<![\w/.-])\d+(?![\w/-])", "N", re.sub(named, "", reason))
