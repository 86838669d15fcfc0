"""What `mfpo pairs` leaves on disk: records, summary, and JSONL for other trainers."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import pyarrow.parquet as pq

from mfpo.build.notes import SetAside, add_up, delete_notes, reason_kind
from mfpo.errors import MfpoError
from mfpo.folders import whole_file, write_json, write_text
from mfpo.pairs.check import Checked
from mfpo.pairs.pair import Pair
from mfpo.pairs.questions import Asked
from mfpo.records import IMAGE_PLACE, ClaimRow, Origin, SourceRecord, answer_text, new_record

# Of the columns of a record those that are known before `mfpo build`.
COLUMNS = ("id", "images", "prompt", "chosen", "rejected", "objects", "claims", "source")


# What is counted of all chosen, or all rejected answers: `true` claims, all `told` ones, and `words`.
Side = dict[str, int]


class Note(TypedDict):
    """What became of a shard's questions."""

    asked: int
    answered: int
    paired: int
    set_aside: list[SetAside]
    left_out: list[SetAside]
    chosen: Side
    rejected: Side


class Summary(TypedDict):
    """`summary.json`. `left_out` counts the questions without a pair by reason, `reasons` those set aside.

    `true_share` is the share of true claims, `length_ratio` the words of all chosen answers over those of the rejected.
    """

    asked: int
    answered: int
    paired: int
    left_out: dict[str, int]
    set_aside: int
    reasons: dict[str, int]
    true_share: dict[str, float]
    length_ratio: float


def empty_note() -> Note:
    """The note of a shard before its first question."""
    return Note(
        asked=0,
        answered=0,
        paired=0,
        set_aside=[],
        left_out=[],
        chosen=Side(true=0, told=0, words=0),
        rejected=Side(true=0, told=0, words=0),
    )


def read_note(path: Path) -> Note:
    """The note of a finished shard."""
    note: Note = json.loads(path.read_text(encoding="utf-8"))
    return note


def count_pair(note: Note, pair: Pair) -> None:
    """Add a pair to the note: its claims that could be told, and its words."""
    note["paired"] += 1
    for side, answer in ((note["chosen"], pair.chosen), (note["rejected"], pair.rejected)):
        side["true"] += answer.true
        side["told"] += answer.true + answer.false
        side["words"] += len(answer.text.split())


def record_of(asked: Asked, pair: Pair, dataset: str, row: int) -> SourceRecord:
    """The record of a pair, with the claims of both answers."""
    return new_record(
        id=asked.id,
        images=[asked.image],
        question=asked.text,
        chosen=pair.chosen.text,
        rejected=pair.rejected.text,
        objects=asked.masks,
        claims=[*_claims("chosen", pair.chosen), *_claims("rejected", pair.rejected)],
        source=Origin(dataset=dataset, row=row),
    )


def _claims(answer: str, checked: Checked) -> Iterator[ClaimRow]:
    for start, end, name, verdict in checked.claims:
        yield ClaimRow(answer=answer, start=start, end=end, object=name, verdict=verdict)


def merge_notes(folder: Path, name: str) -> Summary:
    """Write `summary.json`, `left_out.jsonl` and `rejected_rows.jsonl` from the shards' notes.

    Raises MfpoError when no question has a pair.
    """
    notes = [read_note(path) for path in sorted(folder.glob("train-*.json"))]
    left_out = [row for note in notes for row in note["left_out"]]
    set_aside = [row for note in notes for row in note["set_aside"]]
    for file, rows in (("left_out.jsonl", left_out), ("rejected_rows.jsonl", set_aside)):
        write_text(folder / file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    sides = {side: add_up([note[side] for note in (empty_note(), *notes)]) for side in ("chosen", "rejected")}
    summary = Summary(
        asked=sum(note["asked"] for note in notes),
        answered=sum(note["answered"] for note in notes),
        paired=sum(note["paired"] for note in notes),
        left_out=dict(Counter(reason_kind(row["reason"]) for row in left_out).most_common()),
        set_aside=len(set_aside),
        reasons=dict(Counter(reason_kind(row["reason"]) for row in set_aside).most_common()),
        true_share={side: counts["true"] / max(counts["told"], 1) for side, counts in sides.items()},
        length_ratio=sides["chosen"]["words"] / max(sides["rejected"]["words"], 1),
    )
    if not summary["paired"]:
        delete_notes(folder)  # something has to change, and then its answers are other ones
        counts = "; ".join(
            f"{count} x {reason}" for reason, count in (summary["left_out"] | summary["reasons"]).items()
        )
        first = next((f", the first: {row['reason']}" for row in (*left_out, *set_aside)), "")
        raise MfpoError(
            f"none of the {summary['asked']} questions of {name} has a pair: {counts or 'there are none'}{first}; see "
            f"{folder}"
        )
    write_json(folder / "summary.json", summary)
    return summary


def write_jsonl(folder: Path, format: str) -> None:
    """`train.jsonl` and `images/` in the place of the Parquet shards, as TRL or ms-swift reads them."""
    shards = sorted(folder.glob("train-*.parquet"))
    file = folder / "train.jsonl"
    if not file.exists():
        (folder / "images").mkdir(exist_ok=True)
        with whole_file(file) as partial, partial.open("w", encoding="utf-8") as lines:
            for number, record in enumerate(_records(shards)):
                image = record["images"][0]
                suffix = Path(image["path"] or "").suffix or ".png"
                name = f"images/{number:06d}{suffix}"
                (folder / name).write_bytes(image["bytes"])
                lines.write(json.dumps(FORMATS[format](record, name), ensure_ascii=False) + "\n")
    for shard in shards:
        shard.unlink()


def _records(shards: list[Path]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=16):
            yield from batch.to_pylist()


def _as_trl(record: Mapping[str, Any], image: str) -> dict[str, Any]:
    return {"id": record["id"], "images": [image]} | {key: record[key] for key in ("prompt", "chosen", "rejected")}


def _as_ms_swift(record: Mapping[str, Any], image: str) -> dict[str, Any]:
    question = answer_text(record["prompt"])
    text = question if IMAGE_PLACE in question else IMAGE_PLACE + question
    messages = [{"role": "user", "content": text}, *record["chosen"]]
    rejected = answer_text(record["rejected"])
    return {"id": record["id"], "messages": messages, "rejected_response": rejected, "images": [image]}


# What `--format` may be besides parquet.
FORMATS: dict[str, Callable[[Mapping[str, Any], str], dict[str, Any]]] = {"trl": _as_trl, "ms-swift": _as_ms_swift}
