"""Parquet shards of records, written whole."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from mfpo.folders import whole_file
from mfpo.records import FEATURES

# Rows are written and read in groups, which are in memory as a whole; Arrow cannot read back one beyond 2 GB.
_ROW_GROUP, _ROW_GROUP_BYTES = 32, 256 << 20


def write_shard(records: Iterable[Mapping[str, Any]], path: Path, columns: Sequence[str] = tuple(FEATURES)) -> None:
    """Write `columns` of records as one Parquet file with the features in its schema, as a `whole_file`.

    Records are written as they come, a group of rows at a time. Without any there is no file.
    """
    rows = iter(records)
    first = next(rows, None)
    if first is None:
        return
    schema = datasets.Features({name: FEATURES[name] for name in columns}).arrow_schema
    # Nearly all of it is images, which are compressed already.
    with whole_file(path) as partial, pq.ParquetWriter(partial, schema, compression="none") as writer:
        for group in _row_groups(chain([first], rows)):
            # Built by pyarrow, not by datasets.Dataset: that one would decode and encode every image on the way.
            writer.write_table(pa.table({name: [row[name] for row in group] for name in columns}, schema=schema))


def keep_first(path: Path, ids: AbstractSet[str]) -> None:
    """Rewrite a shard so that it holds the first record of each of `ids`; without any there is no file."""

    def records() -> Iterator[Mapping[str, Any]]:
        left = set(ids)
        for batch in pq.ParquetFile(path).iter_batches(batch_size=_ROW_GROUP):
            for record in batch.to_pylist():
                if record["id"] in left:
                    left.remove(record["id"])
                    yield record

    if ids:
        write_shard(records(), path)
    else:
        path.unlink(missing_ok=True)


def _row_groups(records: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    group: list[Mapping[str, Any]] = []
    size = 0
    for record in records:
        group.append(record)
        size += sum(len(image["bytes"]) for image in [*record["images"], *(record.get("rejected_images") or ())])
        if len(group) == _ROW_GROUP or size >= _ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
