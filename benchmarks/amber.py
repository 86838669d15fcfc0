"""How long AMBER takes by string match: 1,004 descriptions and 14,216 yes/no answers, made from its annotations.

python benchmarks/amber.py --data ../shared/data/amber --json amber.json
"""

import argparse
import time
from operator import eq
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mfpo.evaluate.amber import amber, load_amber
from mfpo.evaluate.amber_words import Reading, words_finder
from mfpo.evaluate.answers import Answer
from mfpo.folders import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    start = time.perf_counter()
    benchmark = load_amber(arguments.data)
    reading = Reading("words", "string", words_finder(benchmark.words), eq)
    seconds = {"load": time.perf_counter() - start}
    questions = benchmark.questions.items()
    described = [
        # A hundred words each, as models write them: every object five times, true ones and likely ones.
        Answer(name, None, None, " ".join(f"There is a {word}." for word in (*question.truth, *question.hallu) * 5))
        for name, question in questions
        if question.kind == "generative"
    ]
    decided = [Answer(name, None, None, "No") for name, question in questions if question.kind != "generative"]
    for kind, answers in (("generative", described), ("discriminative", decided)):
        start = time.perf_counter()
        amber(answers, benchmark, reading).json()
        seconds[kind] = time.perf_counter() - start
    shown = Table("step", "answers", "seconds", title="AMBER, intervals included")
    counts = {"load": len(benchmark.questions), "generative": len(described), "discriminative": len(decided)}
    for name, value in seconds.items():
        shown.add_row(name, f"{counts[name]:,}", f"{value:.2f}")
    Console().print(shown)
    if arguments.json:
        write_json(arguments.json, {f"{name}_seconds": value for name, value in seconds.items()})


if __name__ == "__main__":
    main()
