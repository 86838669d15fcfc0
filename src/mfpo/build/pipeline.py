"""Paper 3.1 for a whole dataset: a source's rows in shards, made by an engine, and counted at the end."""

import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets

from mfpo.build.engine import Engine, Shard, Threads, Work, chunks
from mfpo.build.notes import Summary, delete_notes, has_notes, merge_notes, note_path, read_note
from mfpo.build.regions import CHOICES, Segmenter
from mfpo.build.settings import BuildSettings, resolve_tagger
from mfpo.build.vectors import open_vectors, vectors_state
from mfpo.dataset import read_dataset
from mfpo.errors import MfpoError
from mfpo.folders import provenance_of, whole_folder, write_json
from mfpo.sources import Source, open_source

Progress = Callable[[Iterable[dict[str, Any]]], Iterable[dict[str, Any]]]


def build(
    source: str | Path | datasets.Dataset | Source,
    out: str | Path,
    settings: BuildSettings = BuildSettings(),
    segmenter: Segmenter | None = None,
    *,
    engine: Engine | None = None,
    progress: Progress = iter,
) -> datasets.Dataset:
    """Write the records of `source` with rejected images to the folder `out`, and open the dataset; see `build_into`.

    `source` may also be an argument of `open_source`: a path, or a dataset in memory with preference columns.
    """
    if isinstance(source, str | Path | datasets.Dataset):
        source = open_source(source)
    build_into(source, Path(out), settings, segmenter, engine=engine, progress=progress)
    return read_dataset(Path(out))


def build_into(
    source: Source,
    out: Path,
    settings: BuildSettings,
    segmenter: Segmenter | None = None,
    *,
    engine: Engine | None = None,
    progress: Progress = iter,
) -> Summary:
    """Write the records of `source` with rejected images to the folder `out`; docs/build.md names its files.

    An invalid row goes to `rejected_rows.jsonl` with its reason. Calling it again with the same
    source, segmenter (by their `provenance`) and settings resumes a killed run and produces the same
    shards; with others it is refused. `engine` is `Threads(1)` by default, or `RayData`; it affects only
    the time.
    Raises MfpoError when `out` exists, when the corruption needs a segmenter and has none, or when no row is usable.
    """
    if settings.needs_regions and segmenter is None:
        raise MfpoError(f"corruption {settings.corruption} needs regions; {CHOICES}")
    # What "auto" stands for depends on the machine, so the provenance has to name it.
    settings = replace(settings, tagger=resolve_tagger(settings.tagger))
    open_vectors(settings.vectors)  # a wrong model is an error before the first row
    made_by = {
        "command": "build",
        "source": provenance_of(source),
        "regions": segmenter and provenance_of(segmenter),
        "vectors": vectors_state(settings.vectors),
        "settings": asdict(settings),
    }
    started = time.monotonic()
    with whole_folder(out, made_by, anew=not has_notes(out.with_name(f"{out.name}.partial"))) as folder:
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
