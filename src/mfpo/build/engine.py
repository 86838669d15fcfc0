"""Make a shard: run its rows through the steps, on the threads of one machine; every row is accounted for."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mfpo.build.notes import Note, SetAside, Written, add_up, repeats
from mfpo.build.regions import Segmenter
from mfpo.build.settings import BuildSettings
from mfpo.build.steps import Draft, draft_record, find_regions, finish_record
from mfpo.errors import RecordError, SettingError, one_line
from mfpo.records import Record, Region
from mfpo.shards import write_shard
from mfpo.sources import Source

T = TypeVar("T")
R = TypeVar("R")

# As many images as a segmenter needs to fill a GPU, and as few as fit in memory decoded.
SEARCHED_TOGETHER = 16


@dataclass
class Work:
    """A row on its way through the steps: what is known so far, or the fault that sets it aside."""

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
        """Write the file of each shard, and yield its path with its note."""
        ...


class Threads:
    """The engine of one machine: `workers` threads read, corrupt and encode; the calling one searches regions.

    Decoding, noise and encoding release the GIL, so threads suffice and the segmenter is in memory once.
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
    with _timed(work, "read"):
        if work.is_repeated:
            raise RecordError(repeats(work.id))
        record = source.record(work.row, work.number)
        work.row = {}  # the record holds all of it
    if work.fault is None:
        with _timed(work, "keywords"):
            work.draft = draft_record(record, settings)
    if work.draft is not None:
        with _timed(work, "read"):
            work.draft.pixels  # noqa: B018 - decoded here, so that a broken image is found before it is searched
    return work


def search(works: Sequence[Work], segmenter: Segmenter | None) -> Sequence[Work]:
    """Find the regions of those rows that had no fault so far."""
    drafts = {number: work.draft for number, work in enumerate(works) if work.draft and work.fault is None}
    if segmenter is None or not drafts:
        return works
    started = time.perf_counter()
    results = find_regions(list(drafts.values()), segmenter)
    for number, regions in zip(drafts, results, strict=True):
        if isinstance(regions, RecordError):
            works[number].fault = str(regions)
        else:
            works[number].regions = regions
        works[number].seconds["regions"] += (time.perf_counter() - started) / len(drafts)
    return works


def finish(work: Work, settings: BuildSettings) -> Work:
    """Make the rejected images of a row that had no fault so far."""
    if work.draft and work.fault is None:
        with _timed(work, "noise"):
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
    note["seconds"] = add_up([note["seconds"], work.seconds])
    if work.fault is not None:
        note["set_aside"].append(SetAside(row=work.number, id=work.id, reason=work.fault))
    if work.record is not None:
        fallback, keywords = work.record["corruption"]["fallback"], len(work.record["keywords"])
        row = Written(row=work.number, id=work.id, fallback=fallback, keywords=keywords, area=work.area)
        note["written"].append(row)


def _ahead(pool: Executor, function: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[R]:
    """`function(item)` for each item in order, with up to `count` of them done ahead in the pool."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """`items` in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


@contextmanager
def _timed(work: Work, name: str) -> Iterator[None]:
    """Time a step of a row, and set the row aside when it raises RecordError."""
    started = time.perf_counter()
    try:
        yield
    except RecordError as error:
        work.fault = one_line(error)
    finally:
        work.seconds[name] += time.perf_counter() - started
