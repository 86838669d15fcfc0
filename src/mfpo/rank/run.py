"""`mfpo rank`: measure the entropy of each record, shard by shard, and write the shards with entropies and levels."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress, TaskID

from mfpo.dataset import TEXT_COLUMNS, column, dataset_hash, read_dataset
from mfpo.errors import MfpoError, brief
from mfpo.folders import fingerprint, whole_folder, write_json
from mfpo.hub import find_model
from mfpo.logprobs.cells import TEXT
from mfpo.logprobs.pairs import Pairs, check_fit
from mfpo.models import load_model, model_files
from mfpo.processors import processor_of
from mfpo.rank.levels import cut_levels, stages
from mfpo.rank.measure import Measure, open_measure
from mfpo.rank.settings import RankSettings

# Records of a dataset in memory that become a shard.
_SHARD_SIZE = 256


@dataclass(frozen=True)
class Shard:
    """Rows of the dataset that become the file `name`; `file` is where they come from, unless from memory."""

    name: str
    rows: range
    file: Path | None

    def read(self, dataset: datasets.Dataset) -> pa.Table:
        """The rows as they are stored, so that no image is decoded."""
        return pq.read_table(self.file) if self.file else dataset.with_format("arrow")[self.rows]


def rank(
    data: str | Path | datasets.Dataset,
    model: Any,
    out: str | Path,
    settings: RankSettings = RankSettings(),
    *,
    processor: Any = None,
) -> datasets.Dataset:
    """Write the records of `data` with their `entropy` and `level` to the new folder `out`, and open them.

    `data` is a folder of `mfpo build` or a dataset as `read_dataset` gives, `model` a folder, a name on the hub, or a
    model in memory with its `processor`. As `rank_into`.
    """
    data = Path(data) if isinstance(data, str) else data
    model = find_model(str(model)) if isinstance(model, str | Path) else model
    rank_into(data, model, Path(out), settings, processor=processor)
    return read_dataset(Path(out))


def rank_into(
    data: Path | datasets.Dataset, model: Any, out: Path, settings: RankSettings, *, processor: Any = None
) -> dict[str, Any]:
    """Write the ranked records to the new folder `out`, and return its summary.

    Shards keep their names, rows their order, images their bytes. The summary counts records and cut answers, and
    gives each level's records and mean entropy in nats. A killed run resumes after the last complete shard.
    """
    dataset = read_dataset(data, needs=TEXT_COLUMNS)
    processor = processor_of(model, processor)
    nli_model = find_model(settings.nli_model) if settings.nli_model else None
    with whole_folder(out, _provenance(data, model, processor, settings, nli_model)) as folder:
        opened = load_model(model) if isinstance(model, Path) else model.eval()
        pairs = Pairs(dataset, processor, cells=TEXT, max_length=settings.max_length)
        name = str(model) if isinstance(model, Path) else "the given model"
        check_fit(opened, pairs, name, batch_size=settings.batch_size)
        shards = list(_shards(data))
        entropies, cut = _entropies(dataset, shards, folder, open_measure(opened, processor, settings, nli_model))
        if len(set(entropies)) == 1 < len(entropies):
            print(f"{out}: all entropies are equal, so the levels follow the ids and mean nothing", file=sys.stderr)
        levels = cut_levels(entropies, column(dataset, "id"), settings.levels)
        for shard in shards:
            _write(shard, dataset, folder, entropies, levels)
        by_level = {name: [entropies[row] for row in rows] for name, rows in stages(levels)}
        summary = {
            "records": len(levels),
            "cut_answers": cut,
            "levels": {name: {"records": len(e), "mean_entropy": sum(e) / len(e)} for name, e in by_level.items()},
        }
        write_json(folder / "summary.json", summary)
        for note in folder.glob("*.entropies"):
            note.unlink()
    return summary


def _provenance(
    data: Path | datasets.Dataset, model: Any, processor: Any, settings: RankSettings, nli_model: Path | None
) -> dict[str, Any]:
    """What must match to resume a killed run: names of folders, and the content of all files."""
    made_by: dict[str, Any] = {"command": "rank", "settings": asdict(settings)}
    made_by |= {"data": str(data) if isinstance(data, Path) else "in memory", "data_files": dataset_hash(data)}
    made_by["model"] = str(model) if isinstance(model, Path) else "in memory"
    made_by["model_files"] = model_files(model, processor)
    return made_by | ({"nli_files": fingerprint(nli_model, "*")} if nli_model else {})


def _shards(data: Path | datasets.Dataset) -> Iterator[Shard]:
    if isinstance(data, Path):
        start = 0
        for file in sorted(data.glob("*.parquet")):
            stop = start + pq.read_metadata(file).num_rows
            yield Shard(file.name, range(start, stop), file)
            start = stop
    else:
        for number, start in enumerate(range(0, len(data), _SHARD_SIZE)):
            yield Shard(f"train-{number:05d}.parquet", range(start, min(start + _SHARD_SIZE, len(data))), None)


def _entropies(
    dataset: datasets.Dataset, shards: Sequence[Shard], folder: Path, measure: Measure
) -> tuple[list[float], int]:
    """The entropy of each record, and how many answers were cut; each shard's are kept in `folder` once it is done."""
    entropies: list[float] = []
    cut = 0
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("entropy", total=len(dataset))
        for shard in shards:
            note = folder / f"{shard.name}.entropies"
            if not note.exists():
                write_json(note, _of_shard(dataset.select(shard.rows), measure, progress, task))
            measured = json.loads(note.read_text(encoding="utf-8"))
            entropies += measured["entropies"]
            cut += measured["cut"]
            progress.update(task, completed=len(entropies))
    return entropies, cut


def _of_shard(records: datasets.Dataset, measure: Measure, progress: Progress, task: TaskID) -> dict[str, Any]:
    entropies: list[float] = []
    cut = 0
    for batch, batch_cut in measure(records):
        entropies += batch
        cut += batch_cut
        progress.advance(task, len(batch))
    for id, entropy in zip(column(records, "id"), entropies, strict=True):
        if not math.isfinite(entropy):
            raise MfpoError(f"record {brief(id)} has no finite entropy; the model's weights are broken")
    return {"entropies": entropies, "cut": cut}


def _write(
    shard: Shard, dataset: datasets.Dataset, folder: Path, entropies: Sequence[float], levels: Sequence[str]
) -> None:
    """Write the rows of a shard with the two columns."""
    table = shard.read(dataset)
    features = datasets.Features.from_arrow_schema(table.schema)
    features |= {"entropy": datasets.Value("float64"), "level": datasets.Value("string")}
    table = table.drop_columns([name for name in ("entropy", "level") if name in table.column_names])
    rows = slice(shard.rows.start, shard.rows.stop)
    table = table.append_column("entropy", pa.array(entropies[rows], pa.float64()))
    table = table.append_column("level", pa.array(levels[rows], pa.string()))
    schema = datasets.Features(features).arrow_schema
    pq.write_table(table.replace_schema_metadata(schema.metadata), folder / shard.name, row_group_size=100)
