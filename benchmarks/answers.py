"""How much faster questions are answered in batches than one by one, and whether the text stays the same.

python benchmarks/answers.py --json answers.json

By the picture book's model in float32, greedily: 150 captions and 150 yes/no questions on 150 scenes. Loading the model
is timed apart and subtracted. Each way is timed with one thread and with two, in several rounds, and its best time
counts: on a busy machine, two threads that wait for each other make one by one ten times slower, which is no merit of
batches.
"""

import argparse
import json
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mfpo.answer.run import answer
from mfpo.answer.settings import AnswerSettings
from mfpo.folders import write_json
from mfpo.picturebook import WEIGHTS
from mfpo.picturebook.book import draw_book

SIZES = (1, 8, 16, 32, 64)
THREADS = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), arguments.questions, arguments.rounds)
    table = Table(
        "questions at a time", "best seconds", "times faster", "by processor time", "other texts than one by one"
    )
    for size, row in result.items():
        table.add_row(size, f"{row['best']:.2f}", f"{row['faster']:.2f}", f"{row['less_work']:.2f}", str(row["differ"]))
    Console().print(table)
    if arguments.json:
        write_json(arguments.json, result)


def measure(folder: Path, count: int, rounds: int) -> dict[str, dict[str, Any]]:
    """By batch size: seconds of each round by number of threads, and how many texts are not those of one by one."""
    book = folder / "book"
    draw_book(book, count=count // 2)
    rows = [
        row | {"question_id": f"{kind} {row['question_id']}"}
        for kind in ("captions", "existence")
        for row in map(json.loads, (book / f"{kind}.jsonl").read_text().splitlines()[: count // 2])
    ]
    result: dict[str, dict[str, Any]] = {
        str(size): {"seconds": {threads: [] for threads in THREADS}, "processor": [], "differ": 0} for size in SIZES
    }
    alone: list[str] = []
    for _, size, threads in product(range(rounds), SIZES, THREADS):
        torch.set_num_threads(threads)
        loading, loading_work, _ = ask(rows[:1], book, folder, size)
        seconds, work, texts = ask(rows, book, folder, size)
        result[str(size)]["seconds"][threads].append(seconds - loading)
        result[str(size)]["processor"].append(work - loading_work)
        alone = alone or texts
        result[str(size)]["differ"] += sum(one != other for one, other in zip(alone, texts, strict=True))
    for row in result.values():
        row["best"] = min(min(seconds) for seconds in row["seconds"].values())
        row["faster"] = result["1"]["best"] / row["best"]
        row["less_work"] = min(result["1"]["processor"]) / min(row["processor"])
    return result


def ask(rows: list[dict[str, Any]], book: Path, folder: Path, size: int) -> tuple[float, float, list[str]]:
    """Seconds by the clock and of the processor to answer `rows`, `size` at a time, and the answers."""
    questions, out = folder / "questions.jsonl", folder / "answers.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start, start_work = time.perf_counter(), time.process_time()
    answer(questions, WEIGHTS, book, out, AnswerSettings(batch_size=size, max_new_tokens=128))
    seconds, work = time.perf_counter() - start, time.process_time() - start_work
    texts = [json.loads(line)["text"] for line in out.read_text().split("\n")[:-1]]
    out.unlink()
    return seconds, work, texts


if __name__ == "__main__":
    main()
