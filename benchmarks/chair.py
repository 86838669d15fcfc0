"""CHAIR of three real models' captions, and how long scoring them takes.

python benchmarks/chair.py --data ../shared/data/chair
"""

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mfpo.evaluate.answers import read_answers
from mfpo.evaluate.chair import chair
from mfpo.truth import load_annotations

# CHAIR_s / CHAIR_i / recall by the standalone script with pattern 3.6.
OFFICIAL = {
    "shikra": "55.6 / 15.5 / 77.7",
    "minigpt4": "29.0 / 9.2 / 62.3",
    "instructblip": "57.2 / 22.7 / 68.9",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    start = time.perf_counter()
    truth = load_annotations(data / "coco2014_objects.jsonl.gz")
    shown = Table("model", "official", "mfpo", "seconds", title=f"truth read in {time.perf_counter() - start:.2f} s")
    for model, official in OFFICIAL.items():
        start = time.perf_counter()
        result = chair(read_answers(data / f"captions_{model}_greedy.jsonl"), truth)
        seconds = f"{time.perf_counter() - start:.2f}"
        shown.add_row(
            model, official, f"{result['chair_s']:.1f} / {result['chair_i']:.1f} / {result['recall']:.1f}", seconds
        )
    Console().print(shown)


if __name__ == "__main__":
    main()
