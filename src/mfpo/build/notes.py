"""The notes of finished shards, from which a killed build resumes, and their summary at the end."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from mfpo.errors import MfpoError, brief
from mfpo.folders import write_json
from mfpo.shards import keep_first


class SetAside(TypedDict):
    """A row that could not become a record: a line of `rejected_rows.jsonl`."""

    row: int
    id: str
    reason: str


class Summary(TypedDict):
    """`summary.json`. `area_destroyed` is the mean share of an image, `left_out` what of the dataset is not read.

    `seconds` is how long the last run took; `stage_seconds` is the time of each step, over all shards and workers.
    """

    read: int
    written: int
    set_aside: int
    reasons: dict[str, int]
    left_out: list[str]
    fallback: int
    keywords_per_record: float
    area_destroyed: float
    seconds: float
    stage_seconds: dict[str, float]


class Written(TypedDict):
    """A row that became a record: whether it has no region, its number of keywords and the share destroyed."""

    row: int
    id: str
    fallback: bool
    keywords: int
    area: float


class Note(TypedDict):
    """A finished shard's data for the summary and for a resumed run."""

    read: int
    written: list[Written]
    set_aside: list[SetAside]
    seconds: dict[str, float]


def note_path(shard: Path) -> Path:
    """The path of a shard's note; a shard with a note is complete."""
    return shard.with_suffix(".json")


def has_notes(folder: Path) -> bool:
    """Whether a shard in the folder is complete; without any there is nothing to resume."""
    return any(folder.glob("train-*.json"))


def read_note(shard: Path) -> Note:
    """What was counted of a complete shard."""
    note: Note = json.loads(note_path(shard).read_text(encoding="utf-8"))
    return note


def merge_notes(folder: Path, name: str, started: float, left_out: Sequence[str] = ()) -> Summary:
    """Merge the shards' notes into `rejected_rows.jsonl` and `summary.json`.

    Of several records with one id the first is kept, the others are set aside. Raises MfpoError when no row became a
    record.
    """
    taken: set[str] = set()
    read = written = fallback = keywords = 0
    area, stage_seconds = 0.0, dict[str, float]()
    set_aside: list[SetAside] = []
    for path in sorted(folder.glob("train-*.json")):
        shard = path.with_suffix(".parquet")
        note = _first_of_each_id(shard, read_note(shard), taken)
        read += note["read"]
        written += len(note["written"])
        fallback += sum(row["fallback"] for row in note["written"])
        keywords += sum(row["keywords"] for row in note["written"])
        area += sum(row["area"] for row in note["written"])
        set_aside += note["set_aside"]
        stage_seconds = add_up([stage_seconds, note["seconds"]])
    reasons = dict(Counter(reason_kind(row["reason"]) for row in set_aside).most_common())
    summary = Summary(
        read=read,
        written=written,
        set_aside=len(set_aside),
        reasons=reasons,
        left_out=list(left_out),
        fallback=fallback,
        keywords_per_record=keywords / max(written, 1),
        area_destroyed=area / max(written, 1),
        seconds=round(time.monotonic() - started, 1),
        stage_seconds={step: round(seconds, 1) for step, seconds in stage_seconds.items()},
    )
    rejected = folder / "rejected_rows.jsonl"
    rejected.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in set_aside), encoding="utf-8")
    if not written:
        delete_notes(folder)  # the source has to be mended, and then its rows are other ones
        counts = "; ".join(f"{count} x {reason}" for reason, count in reasons.items()) or "there are none"
        raise MfpoError(f"none of the {summary['read']} rows of {name} became a record: {counts}; see {rejected}")
    write_json(folder / "summary.json", summary)
    return summary


def _first_of_each_id(shard: Path, note: Note, taken: set[str]) -> Note:
    """The note without the records whose id is `taken`, or that of an earlier one; the shard is rewritten without.

    Only here, where all shards are there, is it sure whose id it is: a row without a record takes none, and the shards
    before may have been made at the same time. The note's file stays, so that a run killed here ends the same.
    """
    rows = sorted([*note["written"], *note["set_aside"]], key=lambda row: row["row"])
    faults = {row["row"]: row["reason"] for row in note["set_aside"]}
    ids: set[str] = set()
    for row in rows:
        if row["id"] in taken:
            faults[row["row"]] = repeats(row["id"])
        elif row["row"] not in faults:
            ids.add(row["id"])
            taken.add(row["id"])
    if len(ids) < len(note["written"]):
        keep_first(shard, ids)
    written = [row for row in note["written"] if row["row"] not in faults]
    set_aside = [
        SetAside(row=row["row"], id=row["id"], reason=faults[row["row"]]) for row in rows if row["row"] in faults
    ]
    return Note(read=note["read"], written=written, set_aside=set_aside, seconds=note["seconds"])


def repeats(id: str) -> str:
    """Why a row is set aside whose id is that of an earlier record."""
    return f"id {brief(id)} is that of an earlier row"


def delete_notes(folder: Path) -> None:
    """Remove the notes of all shards, once they are merged."""
    for path in folder.glob("train-*.json"):
        path.unlink()


def add_up(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The sum of what all `parts` have under a name, for each name.

    >>> add_up([{"read": 1, "write": 2}, {"read": 3}])
    {'read': 4, 'write': 2}
    """
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total


def reason_kind(reason: str) -> str:
    """A reason without the names and numbers that differ from row to row, so that equal faults are counted together.

    >>> reason_kind("image 'cat.jpg' cannot be read (truncated file)"), reason_kind("line 12 of a.jsonl is empty")
    ('image cannot be read', 'line N of a.jsonl is empty')
    """
    named = r" \(.*\)|(?<=image) (['\"]).*?\1|(?<=^id) (['\"]).*?\2|(?<=masks of) (['\"]).*?\3"
    return re.sub(r"(?<![\w/.-])\d+(?![\w/-])", "N", re.sub(named, "", reason))
