"""A training step of a method of four cells, a row an image, against a plain padded row a cell with the same losses.

    python benchmarks/cells.py --json cells.json

Forward and backward without the optimizer, on the shapes of `step.py`. Both sides have their reference computed before.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mfpo.logprobs.cells import CELLS
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.sequences import sequence_logps
from mfpo.train.objectives import OBJECTIVES, LogRatios, total
from step import SHAPES, encode_plain, make_model, make_processor, make_records

METHOD = OBJECTIVES["counterfactual"]


def with_counter(row: dict[str, Any]) -> dict[str, Any]:
    """The record with an answer of the chosen one's length."""
    words = row["chosen"][0]["content"].split()
    return {"counter": [{"role": "assistant", "content": " ".join(reversed(words))}]}


def shared(model: Any, pairs: Pairs, rows: range) -> Callable[[], dict[str, Tensor]]:
    batch = pairs.collate([pairs[row] for row in rows], shared=True)
    batch.pop("rows")

    def logps() -> dict[str, Tensor]:
        return dict(zip(pairs.names, sequence_logps(model, batch).view(len(rows), -1).T, strict=True))

    return logps


def plain(model: Any, records: Any, processor: Any, rows: range) -> Callable[[], dict[str, Tensor]]:
    """Each cell in a row of its own with its image, padded, all logits."""
    cells = [(records[row], CELLS[name]) for name in METHOD.cells for row in rows]
    encoded = [encode_plain(processor, record, str(cell.images), cell.answer) for record, cell in cells]
    pixels, ids, is_answer = zip(*encoded, strict=True)
    inputs = {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "pixel_values": torch.cat(pixels),
    }
    answers = pad_sequence(is_answer, batch_first=True)[:, 1:]

    def logps() -> dict[str, Tensor]:
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        tokens = F.log_softmax(logits, -1).gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1)
        return dict(zip(METHOD.cells, (tokens * answers).sum(-1).view(len(METHOD.cells), -1), strict=True))

    return logps


def seconds(model: Any, logps: Callable[[], dict[str, Tensor]], reference: dict[str, Tensor]) -> float:
    """Processor time of a step."""
    started = time.process_time()
    ratios = LogRatios(**{name: logp - reference[name] for name, logp in logps().items()})
    total(METHOD.losses(ratios)).mean().backward()
    model.zero_grad()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shape", choices=("small", "tiny"), default="small")
    parser.add_argument("--steps", type=int, default=3, help="steps of each side that are timed")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    records, processor = make_records(shape, arguments.steps).map(with_counter), make_processor(shape)
    model = make_model(shape)
    pairs = Pairs(records, processor, cells=METHOD.cells, max_length=2048)
    spent: dict[str, list[float]] = {"shared": [], "plain": []}
    off = 0.0
    for start in range(0, len(pairs), shape.batch):
        rows = range(start, start + shape.batch)
        ways = {"shared": shared(model, pairs, rows), "plain": plain(model, records, processor, rows)}
        with torch.no_grad():
            both = {name: way() for name, way in ways.items()}
        off = max(off, *(float((both["plain"][name] / both["shared"][name] - 1).abs().max()) for name in METHOD.cells))
        for name, way in ways.items():
            spent[name].append(seconds(model, way, both[name]))
    medians = {name: statistics.median(values) for name, values in spent.items()}
    figures = medians | {"speedup": medians["plain"] / medians["shared"], "largest difference of log p": off}
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
