"""How much faster questions are answered in batches than one by one, and whether the text stays the same.

python benchmarks/answers.py --json answers.json

By the picture book's model in float32, greedily: 150 captions and 150 yes/no questions on 150 scenes. Each way is timed
with one thread and with two, and the faster counts: two threads that wait for each other on a busy machine make one by
one ten times slower, which is no merit of the batches.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mfpo.evaluate.generate import answer
from mfpo.folders import write_json
from mfpo.picturebook.book import draw_book
from mfpo.picturebook.model import WEIGHTS

SIZES = (1, 8, 32, 64)
THREADS = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), arguments.questions)
    table = Table(
        "questions at a time", "seconds, 1 thread", "2 threads", "times faster", "other texts than one by one"
    )
    for size, row in result.items():
        table.add_row(size, *(f"{second:.1f}" for second in row["seconds"]), f"{row['faster']:.1f}", str(row["differ"]))
    Console().print(table)
    if arguments.json:
        write_json(arguments.json, result)


def measure(folder: Path, count: int) -> dict[str, dict[str, Any]]:
    """By batch size: seconds by number of threads, with loading, and how many texts are not those of one by one."""
    book = folder / "book"
    draw_book(book, count=count // 2)
    rows = [
        row | {"question_id": f"{kind} {row['question_id']}"}
        for kind in ("captions", "existence")
        for row in map(json.loads, (book / f"{kind}.jsonl").read_text().splitlines()[: count // 2])
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result: dict[str, dict[str, Any]] = {}
    alone: list[str] = []
    for size in SIZES:
        seconds, differ = [], 0
        for threads in THREADS:
            torch.set_num_threads(threads)
            out = folder / f"{size}_{threads}.jsonl"
            start = time.perf_counter()
            answer(folder / "questions.jsonl", WEIGHTS, book, out, batch_size=size, max_new_tokens=128)
            seconds.append(time.perf_counter() - start)
            texts = [json.loads(line)["text"] for line in out.read_text().split("\n")[:-1]]
            alone = alone or texts
            differ += sum(one != other for one, other in zip(alone, texts, strict=True))
        result[str(size)] = {"seconds": seconds, "differ": differ}
    one_by_one = min(result["1"]["seconds"])
    return {size: row | {"faster": one_by_one / min(row["seconds"])} for size, row in result.items()}


if __name__ == "__main__":
    main()
