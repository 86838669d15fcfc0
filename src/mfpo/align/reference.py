"""The reference model's log-probabilities, computed once before training and kept on disk.

The model that is going to be trained is its own reference as long as nothing has been trained, so that there never is
a second model in memory.
"""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from mfpo.align.logprobs import sequence_logps
from mfpo.align.pairs import Pairs
from mfpo.align.prefix import shares_prefix


def reference_logps(model: Any, pairs: Pairs, *, batch_size: int, autocast: AbstractContextManager[Any]) -> Tensor:
    """log p of every sequence of every record, (records, sequences per record), with the columns of `pairs.names`.

    `autocast` is the precision context of the training, so that the first log-ratios are 0.
    """
    batches = DataLoader(pairs, batch_size=batch_size, collate_fn=partial(pairs.collate, shared=shares_prefix(model)))
    logps = []
    with torch.inference_mode(), autocast:
        for batch in track(batches, "reference", console=Console(stderr=True)):
            batch.pop("rows")
            logps.append(sequence_logps(model, batch).view(-1, len(pairs.names)).cpu())
    return torch.cat(logps)


def write_reference(path: Path, pairs: Pairs, logps: Tensor) -> None:
    """Keep the log-probabilities beside the records' ids; the file appears whole or not at all."""
    columns = {name: logps[:, number].numpy() for number, name in enumerate(pairs.names)}
    partial = path.with_suffix(".partial")
    pq.write_table(pa.table({"id": pairs.ids, **columns}), partial)
    partial.replace(path)


def read_reference(path: Path, pairs: Pairs) -> Tensor:
    """What `write_reference` wrote, (records, sequences per record)."""
    table = pq.read_table(path)
    assert table["id"].to_pylist() == pairs.ids, "the run folder's provenance should have told the datasets apart"
    return torch.stack([torch.from_numpy(table[name].to_numpy().copy()) for name in pairs.names], dim=1)
