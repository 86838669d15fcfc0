"""Paper 3.1 for a whole dataset: rows in shards through the stages, every one of them accounted for."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mfpo.build.regions import CHOICES, Segmenter
from mfpo.build.settings import BuildSettings, resolve_tagger
from mfpo.build.shards import (
    Note,
    SetAside,
    Summary,
    Written,
    delete_notes,
    merge_notes,
    note_path,
    read_note,
    repeats,
    sum_seconds,
)
from mfpo.build.stages import Draft, draft_record, find_regions, finish_record
from mfpo.build.vectors import open_vectors
from mfpo.errors import MfpoError, RecordError, SettingError, one_line
from mfpo.folders import whole_folder, write_json
from mfpo.records import Record, Region, write_shard
from mfpo.sources import Source

T = TypeVar("T")
R = TypeVar("R")

# As many images as a segmenter needs to fill a GPU, and as few as fit in memory decoded.
SEARCHED_TOGETHER = 16


@dataclass
class Work:
    """A row on its way through the stages: what is known so far, or the fault that sets it aside."""

    number: int
    id: str
    row: dict[str, Any]
    is_repeated: bool
    draft: Draft | None = None
    regions: list[Region] = field(default_factory=list)
    record: Record | None = None
    area: float = 0.0
    fault: str | None = None
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass(frozen=True)
class Shard:
    """Rows of the source whose records go into the file `path`."""

    path: Path
    rows: list[Work]


class Engine(Protocol):
    def __call__(
        self, shards: Iterator[Shard], source: Source, settings: BuildSettings, segmenter: Segmenter | None
    ) -> Iterator[tuple[Path, Note]]:
        """Write the file of each shard, and give its path with the note that it leaves."""
        ...


def build(
    source: Source,
    out: Path,
    settings: BuildSettings,
    segmenter: Segmenter | None = None,
    *,
    engine: Engine | None = None,
    made_by: Mapping[str, Any] | None = None,
    progress: Callable[[Iterable[dict[str, Any]]], Iterable[dict[str, Any]]] = iter,
) -> Summary:
    """Write the records of `source` with rejected images to the folder `out`; docs/build.md names its files.

    A row that cannot be a record goes to `rejected_rows.jsonl` with its reason. A killed run goes on where it stopped
    when it is started again with the same settings and `made_by`, and ends with the same shards. Of the source only the
    name is compared, so `made_by` must hold what else decides its rows, as size and time of each of its files.
    `engine` is `Threads(1)` if not given, or `RayData`; it changes nothing but the time.
    Raises MfpoError when `out` exists, when the corruption needs a segmenter and has none, or when no row can be used.
    """
    if settings.needs_regions and segmenter is None:
        raise MfpoError(f"corruption {settings.corruption} needs regions; {CHOICES}")
    # What "auto" stands for depends on the machine, so the provenance has to name it.
    settings = replace(settings, tagger=resolve_tagger(settings.tagger))
    open_vectors(settings.vectors)  # a wrong model is an error before the first row
    started = time.monotonic()
    with whole_folder(out, {"source": source.name, **(made_by or {}), "settings": asdict(settings)}) as folder:
        taken: set[str] = set()
        rows = _number(source, progress(source), taken)
        shards = (
            Shard(folder / f"train-{number:05d}.parquet", chunk)
            for number, chunk in enumerate(chunks(rows, settings.shard_size))
        )
        for path, note in (engine or Threads(1))(_unfinished(shards, taken), source, settings, segmenter):
            write_json(note_path(path), note)
            taken.update(row["id"] for row in note["written"])
        # Only a source of files leaves any out.
        summary = merge_notes(folder, source.name, started, getattr(source, "left_out", ()))
    # Not before the folder has its name: a run that is killed here would do its shards again.
    delete_notes(out)
    return summary


class Threads:
    """The engine of one machine: `workers` threads read, destroy and encode; the calling one searches regions.

    Decoding, noise and encoding leave Python's lock, so that threads are enough and the segmenter is in memory once.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise SettingError(f"workers is {workers}, but must be 1 or more")
        self.workers = workers

    def __call__(
        self, shards: Iterator[Shard], source: Source, settings: BuildSettings, segmenter: Segmenter | None
    ) -> Iterator[tuple[Path, Note]]:
        with ThreadPoolExecutor(self.workers) as pool:
            for shard in shards:
                drafts = _ahead(pool, partial(draft, source=source, settings=settings), shard.rows, 2 * self.workers)
                searched = (work for some in chunks(drafts, SEARCHED_TOGETHER) for work in search(some, segmenter))
                finished = _ahead(pool, partial(finish, settings=settings), searched, 2 * self.workers)
                yield shard.path, write(shard.path, finished)


def draft(work: Work, source: Source, settings: BuildSettings) -> Work:
    """Read the record of a row, and rank its keywords."""
    with _stage(work, "read"):
        if work.is_repeated:
            raise RecordError(repeats(work.id))
        record = source.record(work.row, work.number)
        work.row = {}  # the record holds all of it
    if work.fault is None:
        with _stage(work, "keywords"):
            work.draft = draft_record(record, settings)
    if work.draft is not None:
        with _stage(work, "read"):
            work.draft.pixels  # noqa: B018 - decoded here, so that a broken image is found before it is searched
    return work


def search(works: Sequence[Work], segmenter: Segmenter | None) -> Sequence[Work]:
    """Find the regions of those rows that had no fault so far."""
    drafts = {number: work.draft for number, work in enumerate(works) if work.draft and work.fault is None}
    if segmenter is None or not drafts:
        return works
    started = time.perf_counter()
    found = find_regions(list(drafts.values()), segmenter)
    for number, regions in zip(drafts, found, strict=True):
        if isinstance(regions, RecordError):
            works[number].fault = str(regions)
        else:
            works[number].regions = regions
        works[number].seconds["regions"] += (time.perf_counter() - started) / len(drafts)
    return works


def finish(work: Work, settings: BuildSettings) -> Work:
    """Make the rejected images of a row that had no fault so far."""
    if work.draft and work.fault is None:
        with _stage(work, "noise"):
            work.record, work.area = finish_record(work.draft, work.regions, settings)
    work.draft = None  # its pixels are not needed any more
    return work


def write(path: Path, works: Iterable[Work]) -> Note:
    """Write the records of a shard to `path` as they come, and count them."""
    note = Note(read=0, written=[], set_aside=[], seconds={})
    waited = 0.0

    def records() -> Iterator[Record]:
        nonlocal waited
        asked = time.perf_counter()
        for work in works:
            waited += time.perf_counter() - asked
            _count(work, note)
            if work.record is not None:
                yield work.record
            work.record = None  # it is written
            asked = time.perf_counter()
        waited += time.perf_counter() - asked

    started = time.perf_counter()
    write_shard(records(), path)
    note["seconds"]["write"] = time.perf_counter() - started - waited
    return note


def _count(work: Work, note: Note) -> None:
    note["read"] += 1
    note["seconds"] = sum_seconds([note["seconds"], work.seconds])
    if work.fault is not None:
        note["set_aside"].append(SetAside(row=work.number, id=work.id, reason=work.fault))
    if work.record is not None:
        fallback, keywords = work.record["corruption"]["fallback"], len(work.record["keywords"])
        row = Written(row=work.number, id=work.id, fallback=fallback, keywords=keywords, area=work.area)
        note["written"].append(row)


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """`items` in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _number(source: Source, rows: Iterable[dict[str, Any]], taken: AbstractSet[str]) -> Iterator[Work]:
    """The rows; those whose id is `taken` by a finished shard need not be made, as `merge_notes` sets them aside."""
    for number, row in enumerate(rows):
        id = source.id(row, number)
        yield Work(number, id, row, is_repeated=id in taken)


def _unfinished(shards: Iterable[Shard], taken: set[str]) -> Iterator[Shard]:
    """The shards without a note; the ids of the others are `taken`."""
    for shard in shards:
        if note_path(shard.path).exists():
            taken.update(row["id"] for row in read_note(shard.path)["written"])
        else:
            yield shard


def _ahead(pool: Executor, function: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[R]:
    """`function(item)` for each item in order, with up to `count` of them done ahead in the pool."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _stage(work: Work, name: str) -> Iterator[None]:
    """Time a stage of a row, and set the row aside when it raises RecordError."""
    started = time.perf_counter()
    try:
        yield
    except RecordError as error:
        work.fault = one_line(error)
    finally:
        work.seconds[name] += time.perf_counter() - started
