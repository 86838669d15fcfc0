"""From easy to hard (paper, section 3.3): the entropy of each record, the levels, the stages of training."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import Progress

from mfpo.errors import MfpoError, brief
from mfpo.folders import fingerprint, whole_folder, write_json
from mfpo.hub import find_model
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.sequences import collate, token_logps
from mfpo.models import load_model, load_processor
from mfpo.rank.entropy import predictive_entropy, token_entropy
from mfpo.rank.semantic_entropy import (
    Entails,
    cluster_by_entailment,
    cluster_by_objects,
    end_ids,
    load_entailment,
    mean_logps,
    sample_answers,
    semantic_entropy,
)
from mfpo.rank.settings import RankSettings
from mfpo.records import TEXT_COLUMNS, answer_text, column, read_dataset

LEVELS = ("easy", "medium", "hard")

# Records -> batch by batch, their entropies and how many answers were cut.
Measure = Callable[[datasets.Dataset], Iterator[tuple[list[float], int]]]


def rank(data: Path, model: Path, out: Path, settings: RankSettings) -> dict[str, Any]:
    """Write the records of `data` with their `entropy` and `level` to the new folder `out`, and return its summary.

    Shards keep their names, rows their order, images their bytes. The summary counts records and cut answers, and
    gives each level's records and mean entropy in nats. A killed run goes on behind the last whole shard.
    """
    dataset = read_dataset(data, needs=TEXT_COLUMNS)
    processor = load_processor(model)
    made_by = {"command": "rank", "data": str(data), "model": str(model), "settings": asdict(settings)}
    made_by |= {"data_files": fingerprint(data, "*.parquet"), "model_files": fingerprint(model, "*")}
    entails = None
    if settings.nli_model is not None:
        nli_model = find_model(settings.nli_model)
        entails = load_entailment(nli_model)
        made_by |= {"nli_files": fingerprint(nli_model, "*")}
    with whole_folder(out, made_by) as folder:
        measure = _measure(load_model(model), processor, settings, entails)
        entropies, cut = _entropies(data, dataset, folder, measure)
        if len(set(entropies)) == 1 < len(entropies):
            print(f"{data}: all entropies are equal, so the levels follow the ids and mean nothing", file=sys.stderr)
        levels = cut_levels(entropies, column(dataset, "id"), settings.levels)
        _write_shards(data, folder, entropies, levels)
        by_level = {name: [entropies[i] for i in indices] for name, indices in stages(levels)}
        summary = {
            "records": len(levels),
            "cut_answers": cut,
            "levels": {name: {"records": len(e), "mean_entropy": sum(e) / len(e)} for name, e in by_level.items()},
        }
        write_json(folder / "summary.json", summary)
        for kept in folder.glob("*.entropies"):
            kept.unlink()
    return summary


def level_names(count: int) -> list[str]:
    """Three are easy, medium and hard, any other number level-1, level-2, ..."""
    return list(LEVELS) if count == len(LEVELS) else [f"level-{number + 1}" for number in range(count)]


def cut_levels(entropies: Sequence[float], ids: Sequence[str], count: int = len(LEVELS)) -> list[str]:
    """The level of each record: sorted by entropy, equal ones by id, and cut into `count` equal parts.

    >>> cut_levels([3.0, 1.0, 2.0], ["a", "b", "c"])
    ['hard', 'easy', 'medium']
    >>> cut_levels([3.0, 1.0, 2.0], ["a", "b", "c"], 2)
    ['level-2', 'level-1', 'level-1']
    """
    names = level_names(count)
    order = sorted(range(len(ids)), key=lambda i: (entropies[i], ids[i]))
    levels = [""] * len(ids)
    for place, i in enumerate(order):
        levels[i] = names[place * count // len(order)]
    return levels


def stages(levels: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The stages of training in order, easy first: the level's name and the rows in it; empty levels are left out.

    Raises MfpoError when the names are not those of `cut_levels`.
    """
    found = set(levels)
    numbered = {name for name in found if re.fullmatch(r"level-[1-9][0-9]*", name)}
    if found <= set(LEVELS):
        order = [name for name in LEVELS if name in found]
    elif found == numbered:
        order = sorted(found, key=lambda name: int(name.removeprefix("level-")))
    else:
        unknown = min(found - numbered - set(LEVELS) or numbered)
        raise MfpoError(
            f"column 'level' holds {brief(unknown)}, but must be one of {', '.join(LEVELS)}, or in all rows a level-1, "
            "level-2, ...; run `mfpo rank` again"
        )
    return [(name, [row for row, level in enumerate(levels) if level == name]) for name in order]


def _measure(model: Any, processor: Any, settings: RankSettings, entails: Entails | None) -> Measure:
    if settings.entropy == "semantic":
        return partial(_of_samples, model, processor, settings, entails)
    return partial(_of_chosen, model, processor, settings)


def _of_chosen(
    model: Any, processor: Any, settings: RankSettings, records: datasets.Dataset
) -> Iterator[tuple[list[float], int]]:
    """The token or predictive entropy of the chosen answers."""
    pairs = Pairs(records, processor, rejected_images=False, max_length=settings.max_length)
    for start in range(0, len(pairs), settings.batch_size):
        stop = min(start + settings.batch_size, len(pairs))
        rows = [pairs[row].prompts[0].split()[0] for row in range(start, stop)]
        batch = collate(rows, pairs.pad_id)
        with torch.inference_mode():
            if settings.entropy == "token":
                entropies = token_entropy(token_logps(model, batch))
            else:
                entropies = predictive_entropy(model, batch)
        yield entropies.tolist(), sum(row.cut != (0,) for row in rows)


def _of_samples(
    model: Any, processor: Any, settings: RankSettings, entails: Entails | None, records: datasets.Dataset
) -> Iterator[tuple[list[float], int]]:
    """The semantic entropy of the prompts; one at a time, as a batch would share its random numbers."""
    pairs = Pairs(records, processor, rejected_images=False, max_length=settings.max_length)
    ends = end_ids(model, processor.tokenizer)
    for row, question in enumerate(column(records, "prompt")):
        prompt = pairs[row].prompts[0]
        with torch.inference_mode():
            if mean_logps(model, prompt, pairs.pad_id).isnan().any():  # nothing can be drawn from that
                yield [math.nan], 0
                continue
            sampled = sample_answers(
                model,
                prompt,
                id=pairs.ids[row],
                samples=settings.samples,
                temperature=settings.temperature,
                max_new_tokens=settings.max_new_tokens,
                pad_id=pairs.pad_id,
                end_ids=ends,
            )
            logps = mean_logps(model, sampled, pairs.pad_id)
        texts = processor.tokenizer.batch_decode(sampled.answers, skip_special_tokens=True)
        if entails is None:
            clusters = cluster_by_objects(texts)
        else:
            clusters = cluster_by_entailment([f"{answer_text(question)} {text.strip()}" for text in texts], entails)
        yield [semantic_entropy(clusters, logps)], sum(sampled.cut)


def _entropies(data: Path, dataset: datasets.Dataset, folder: Path, measure: Measure) -> tuple[list[float], int]:
    """The entropy of each record, and how many answers were cut; each shard's are kept in `folder` once it is done."""
    entropies: list[float] = []
    cut = 0
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("entropy", total=len(dataset))
        for shard in sorted(data.glob("*.parquet")):
            kept = folder / f"{shard.name}.entropies"
            if not kept.exists():
                rows = range(len(entropies), len(entropies) + pq.read_metadata(shard).num_rows)
                write_json(kept, _of_shard(dataset.select(rows), measure, partial(progress.advance, task)))
            found = json.loads(kept.read_text(encoding="utf-8"))
            entropies += found["entropies"]
            cut += found["cut"]
            progress.update(task, completed=len(entropies))
    return entropies, cut


def _of_shard(records: datasets.Dataset, measure: Measure, advance: Callable[[float], None]) -> dict[str, Any]:
    entropies: list[float] = []
    cut = 0
    for batch, batch_cut in measure(records):
        entropies += batch
        cut += batch_cut
        advance(len(batch))
    for id, entropy in zip(column(records, "id"), entropies, strict=True):
        if not math.isfinite(entropy):
            raise MfpoError(f"record {brief(id)} has no finite entropy; the model's weights are broken")
    return {"entropies": entropies, "cut": cut}


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
