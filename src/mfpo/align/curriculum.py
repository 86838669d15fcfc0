"""From easy to hard (paper, section 3.3): the entropy of each chosen answer, three levels, the stages of training."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mfpo.align.logprobs import collate, token_logps
from mfpo.align.pairs import Pairs
from mfpo.errors import MfpoError, SettingError
from mfpo.folders import fingerprint, whole_folder, write_json
from mfpo.models import load_model, load_processor
from mfpo.records import TEXT_COLUMNS, read_dataset
from mfpo.settings import setting

LEVELS = ("easy", "medium", "hard")


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    batch_size: int = setting(16, "records in one forward pass; changes nothing but speed and memory")
    max_length: int = setting(2048, "tokens of prompt, images and answer; an answer's end beyond it is cut")

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.max_length < 1:
            raise SettingError(f"batch_size={self.batch_size} and max_length={self.max_length} must be at least 1")


def rank(data: Path, model: Path, out: Path, settings: RankSettings) -> dict[str, Any]:
    """Write the records of `data` with their `entropy` and `level` to the new folder `out`, and return its summary.

    Shards keep their names, rows their order, images their bytes. The summary counts records and cut answers, and
    gives each level's records and mean entropy in nats.
    """
    dataset = read_dataset(data, needs=TEXT_COLUMNS)
    processor = load_processor(model)
    made_by = {"command": "rank", "data": str(data), "model": str(model), "settings": asdict(settings)}
    made_by |= {"data_files": fingerprint(data, "*.parquet"), "model_files": fingerprint(model, "*")}
    with whole_folder(out, made_by) as folder:
        pairs = Pairs(dataset, processor, rejected_images=False, max_length=settings.max_length)
        entropies, cut = _entropies(load_model(model), pairs, settings.batch_size)
        levels = cut_levels(entropies, pairs.ids)
        _write_shards(data, folder, entropies, levels)
        by_level = {name: [entropies[i] for i in indices] for name, indices in stages(levels)}
        summary = {
            "records": len(levels),
            "cut_answers": cut,
            "levels": {name: {"records": len(e), "mean_entropy": sum(e) / len(e)} for name, e in by_level.items()},
        }
        write_json(folder / "summary.json", summary)
    return summary


def token_entropy(logps: Tensor) -> Tensor:
    """H = - sum over the answer's tokens of p_i log p_i, in nats (section 3.3, taken literally).

    `logps` is (rows, positions) with 0 outside the answer, where p log p vanishes; returns (rows,).

    >>> token_entropy(torch.tensor([[0.5, 0.25, 1.0]]).log()).item() / torch.tensor(2.0).log().item()
    1.0
    """
    return -(logps.exp() * logps).sum(dim=-1)


def cut_levels(entropies: Sequence[float], ids: Sequence[str]) -> list[str]:
    """The level of each record: sorted by entropy, equal ones by id, and cut into three equal parts.

    >>> cut_levels([3.0, 1.0, 2.0], ["a", "b", "c"])
    ['hard', 'easy', 'medium']
    """
    order = sorted(range(len(ids)), key=lambda i: (entropies[i], ids[i]))
    levels = [""] * len(ids)
    for place, i in enumerate(order):
        levels[i] = LEVELS[place * len(LEVELS) // len(order)]
    return levels


def stages(levels: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The stages of training in order, easy first: the level's name and the rows in it; empty levels are left out."""
    unknown = sorted(set(levels) - set(LEVELS))
    if unknown:
        raise MfpoError(f"column 'level' holds {unknown[0]!r}, but must be one of {', '.join(LEVELS)}")
    rows = {name: [row for row, level in enumerate(levels) if level == name] for name in LEVELS}
    return [(name, indices) for name, indices in rows.items() if indices]


def _entropies(model: Any, pairs: Pairs, batch_size: int) -> tuple[list[float], int]:
    """The entropy of each record's chosen answer, and how many of these were cut."""
    entropies: list[float] = []
    cut = 0
    for start in track(range(0, len(pairs), batch_size), "entropy", console=Console(stderr=True)):
        rows = [pairs[row].prompts[0].split()[0] for row in range(start, min(start + batch_size, len(pairs)))]
        cut += sum(row.cut != (0,) for row in rows)
        with torch.inference_mode():
            entropies += token_entropy(token_logps(model, collate(rows, pairs.pad_id))).tolist()
    broken = [id for id, entropy in zip(pairs.ids, entropies, strict=True) if not math.isfinite(entropy)]
    if broken:
        raise MfpoError(f"record {broken[0]!r} has no finite entropy; the model's weights are broken")
    return entropies, cut


def _write_shards(data: Path, folder: Path, entropies: Sequence[float], levels: Sequence[str]) -> None:
    """Copy each shard with the two columns; as Arrow tables, so that no image is decoded."""
    start = 0
    for shard in sorted(data.glob("*.parquet")):
        table = pq.read_table(shard)
        table = table.drop_columns([name for name in ("entropy", "level") if name in table.column_names])
        rows = slice(start, start + len(table))
        table = table.append_column("entropy", pa.array(entropies[rows], pa.float64()))
        table = table.append_column("level", pa.array(levels[rows], pa.string()))
        features = datasets.Features.from_arrow_schema(pq.read_schema(shard))
        features |= {"entropy": datasets.Value("float64"), "level": datasets.Value("string")}
        schema = datasets.Features(features).arrow_schema
        pq.write_table(table.replace_schema_metadata(schema.metadata), folder / shard.name, row_group_size=100)
        start = rows.stop
