"""The reference model's log-probabilities, computed once before training and kept on disk.

Before training the policy is its own reference, so only methods that read its logits need a second model in memory.
A run stores the values in its folder. Those of the untrained model are also cached with the dataset, in
`DATA/.reference/KEY.parquet`, for later runs: KEY identifies model, precision and code, and each row of the file
is one sequence, so that only changed records are computed again.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mfpo.errors import MfpoError, brief
from mfpo.folders import fingerprint, versions, whole_file
from mfpo.logprobs.cells import CELLS, columns
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.prefix import shares_prefix
from mfpo.logprobs.sequences import sequence_logps
from mfpo.train.processes import as_first_says, gathered, processes, say, share

# Hash of a sequence -> log p of its answer, and how many of the answer's tokens were cut at the maximum length.
Known = dict[str, tuple[float, int]]

_PACKAGE = Path(__file__).parents[1]
_CODE = (
    *(
        f"logprobs/{name}.py"
        for name in ("attention", "cells", "conversation", "features", "pairs", "prefix", "sequences")
    ),
    "train/policy.py",
    "train/methods/chip.py",
    "train/methods/ddpo.py",
    "models.py",
    "processors.py",
    "records.py",
    "adapters.py",
)


def reference_key(*, package: Path = _PACKAGE, **depends_on: object) -> str:
    """A name for log-probabilities that depend on `depends_on`, on the versions and on the code that computes them."""
    code = [fingerprint(package, name) for name in _CODE]
    text = json.dumps([depends_on, versions(), code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sequence_hashes(dataset: datasets.Dataset, names: Sequence[str], *, paired: bool = False) -> list[list[str]]:
    """A hash of images, prompt and answer of each record's sequences, in the order of `names`.

    `paired` says that a sequence's log p depends on both answers of its record.
    """
    cells = [CELLS[name] for name in names]
    pair = ["chosen", "rejected"] if paired else []
    encoded = dataset.select_columns(["prompt", *columns(names)]).with_format("arrow")
    records = (record for table in encoded.iter(batch_size=32) for record in table.to_pylist())
    return [
        [
            _hash(
                record["prompt"],
                record[cell.images] if cell.images else [],
                record[cell.answer],
                *map(record.get, pair),
            )
            for cell in cells
        ]
        for record in records
    ]


def _hash(prompt: Any, images: Sequence[Any], answer: Any, *pair: Any) -> str:
    digest = hashlib.sha256(json.dumps([prompt, answer, len(images), *pair]).encode())
    for image in images:
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def reference_logps(
    model: Any,
    pairs: Pairs,
    rows: Sequence[int],
    *,
    cells: Sequence[str] | None = None,
    batch_size: int,
    autocast: AbstractContextManager[Any],
) -> dict[int, list[tuple[float, int]]]:
    """log p and cut tokens of the sequences `cells`, by default all, of the records `rows`, ordered as `pairs.names`.

    `autocast` is the precision context of the training, so that the first log-ratios are 0. Raises MfpoError with the
    record whose log p is not finite.
    """
    shared = shares_prefix(model)
    computed: dict[int, list[tuple[float, int]]] = {}
    hidden = not rows or not processes().is_main_process
    console = Console(stderr=True)
    with torch.inference_mode(), autocast:
        for start in track(range(0, len(rows), batch_size), "reference", console=console, disable=hidden):
            batch = [pairs[row].only(cells or pairs.names) for row in rows[start : start + batch_size]]
            inputs = pairs.collate(batch, shared=shared)
            inputs.pop("rows")
            logps = sequence_logps(model, inputs).view(len(batch), -1)
            for pair, values in zip(batch, logps, strict=True):
                if not values.isfinite().all():
                    raise MfpoError(
                        f"record {brief(pairs.ids[pair.row])} has no finite log p; the model's weights are broken"
                    )
                cut = [tokens for prompt in pair.prompts for tokens in prompt.cut]
                computed[pair.row] = list(zip(values.tolist(), cut, strict=True))
    return computed


def find_reference(
    model: Any,
    pairs: Pairs,
    hashes: Sequence[Sequence[str]],
    kept: Path,
    *,
    batch_size: int,
    autocast: AbstractContextManager[Any],
    block: int = 4096,
) -> dict[int, list[tuple[float, int]]]:
    """`reference_logps` of all records: read from the file `kept` as far as it has them, computed and added to it.

    Of a record only the missing cells are computed, as another method may have left the others. The processes share the
    work. The file is written after every `block` records, which a killed run does not lose; if it cannot be read or
    written, stderr says so and the run continues.
    """
    known: Known = as_first_says(read_known(kept) if processes().is_main_process else None)
    missing = _missing_cells(pairs, hashes, known)
    every, lacking = len(pairs) * len(pairs.names), sum(len(cells) * len(rows) for cells, rows in missing.items())
    if lacking < every:
        say(f"reference: {every - lacking} of {every} answers are in {kept.parent}")
    blocks = [(cells, rows[at : at + block]) for cells, rows in missing.items() for at in range(0, len(rows), block)]
    for cells, rows in blocks:
        computed = reference_logps(model, pairs, share(rows), cells=cells, batch_size=batch_size, autocast=autocast)
        new = {
            hashes[row][pairs.names.index(cell)]: value
            for row, values in gathered(computed).items()
            for cell, value in zip(cells, values, strict=True)
        }
        known |= new
        if processes().is_main_process:
            add_known(kept, new)
    return {row: [known[sequence] for sequence in record] for row, record in enumerate(hashes)}


def _missing_cells(pairs: Pairs, hashes: Sequence[Sequence[str]], known: Known) -> dict[tuple[str, ...], list[int]]:
    """The records that are not wholly known, by the cells that they lack."""
    missing: dict[tuple[str, ...], list[int]] = {}
    for row, record in enumerate(hashes):
        cells = tuple(name for name, sequence in zip(pairs.names, record, strict=True) if sequence not in known)
        if cells:
            missing.setdefault(cells, []).append(row)
    return missing


def read_known(path: Path) -> Known:
    """The content of a cache file; if it cannot be read, nothing, with a note on stderr."""
    try:
        columns = pq.read_table(path).to_pydict() if path.exists() else {"sequence": [], "logp": [], "cut_tokens": []}
    except (OSError, pa.ArrowInvalid) as error:
        say(f"{path}: cannot be read ({error}); the reference is computed again")
        return {}
    return dict(zip(columns["sequence"], zip(columns["logp"], columns["cut_tokens"], strict=True), strict=True))


def add_known(path: Path, new: Known) -> None:
    """Add to the file, which appears whole or not at all; what another run adds in the same moment may be lost."""
    try:
        known = read_known(path) | new
        logps, cut = zip(*known.values(), strict=True)
        columns = {"sequence": list(known), "logp": pa.array(logps, pa.float32()), "cut_tokens": list(cut)}
        with whole_file(path, is_shared=True) as partial:
            pq.write_table(pa.table(columns), partial)
    except OSError as error:
        say(f"{path.parent}: cannot be written ({error.strerror}), so only this run keeps the reference")


def write_reference(path: Path, pairs: Pairs, logps: dict[int, list[tuple[float, int]]]) -> None:
    """Keep the log-probabilities beside the records' ids; the file appears whole or not at all."""
    rows = sorted(logps)
    columns = {
        name: pa.array([logps[row][number][0] for row in rows], pa.float32()) for number, name in enumerate(pairs.names)
    }
    with whole_file(path) as partial:
        pq.write_table(pa.table({"id": [pairs.ids[row] for row in rows], **columns}), partial)


def read_reference(path: Path, pairs: Pairs, rows: Sequence[int]) -> Tensor:
    """What `write_reference` wrote for `rows`, (records, sequences per record); NaN in the others."""
    table = pq.read_table(path)
    rows = sorted(rows)
    ids = [pairs.ids[row] for row in rows]
    assert table["id"].to_pylist() == ids, "the run folder's provenance should have told the datasets apart"
    reference = torch.full((len(pairs), len(pairs.names)), torch.nan)
    reference[rows] = torch.stack([torch.from_numpy(table[name].to_numpy().copy()) for name in pairs.names], dim=1)
    return reference
