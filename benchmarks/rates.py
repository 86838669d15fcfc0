"""The learning rate of each method of the demo: the same rates for each, chosen on validation scenes.

    python benchmarks/rates.py --out runs/rates

The validation scenes are none of those that the demo trains or scores on. A killed run goes on where it stopped.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mfpo.align.curriculum import RankSettings, rank
from mfpo.align.train_settings import TrainSettings
from mfpo.align.trainer import train
from mfpo.demo import build_pairs, score
from mfpo.picturebook.book import draw_book
from mfpo.picturebook.model import WEIGHTS

RATES = (3e-6, 1e-5, 2e-5, 3e-5, 5e-5, 1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["dpo", "mfpo"])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1, help="not the demo's 0")
    arguments = parser.parse_args()
    out: Path = arguments.out
    build_pairs(out / "pairs", arguments.pairs, arguments.seed, "pairs")
    build_pairs(out / "scored_pairs", 150, arguments.seed, "validation")
    if not (out / "ranked").exists():
        rank(out / "pairs", WEIGHTS, out / "ranked", RankSettings())
    if not (out / "scenes").exists():
        draw_book(out / "scenes", count=arguments.scenes, seed=arguments.seed, split="validation")
    figures = {"base": score(WEIGHTS, "base", scenes=out / "scenes", pairs=out / "scored_pairs", answers=out)}
    for method in arguments.methods:
        for rate in arguments.rates:
            name = f"{method}_{rate:g}"
            if not (out / name).exists():
                settings = TrainSettings(method=method, learning_rate=rate, seed=arguments.seed)
                train(out / "ranked", WEIGHTS, out / name, settings)
            figures[name] = score(
                out / name / "model", name, scenes=out / "scenes", pairs=out / "scored_pairs", answers=out
            )
            (out / "rates.json").write_text(json.dumps(figures, indent=2) + "\n")
    shown = Table("run", *figures["base"])
    for name, row in figures.items():
        shown.add_row(name, *(f"{value:.1f}" for value in row.values()))
    Console().print(shown)


if __name__ == "__main__":
    main()
