"""The full pipeline on the picture book: pairs, ranking, DPO and MFPO from one start, held-out questions, a page."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mfpo.answer.run import answer
from mfpo.answer.settings import AnswerSettings
from mfpo.build.pipeline import build
from mfpo.build.regions.dataset import DatasetRegions
from mfpo.build.settings import BuildSettings
from mfpo.dataset import read_dataset
from mfpo.demo_settings import DemoSettings
from mfpo.evaluate.chair import chair
from mfpo.evaluate.existence import existence
from mfpo.folders import versions, whole_folder, write_json
from mfpo.models import load_model
from mfpo.picturebook import WEIGHTS
from mfpo.picturebook.book import ASKED_SCENES, FIGURES, draw_book
from mfpo.picturebook.rates import RATES
from mfpo.picturebook.source import PictureBookSource
from mfpo.probe.dependence import image_dependence
from mfpo.processors import load_processor
from mfpo.rank.run import rank
from mfpo.rank.settings import RankSettings
from mfpo.report import write_report
from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings

METHODS = ("dpo", "mfpo")


def demo(out: Path, settings: DemoSettings, *, console: Console) -> dict[str, Any]:
    """Run everything into `out` and return the content of its `results.json`.

    A killed run resumes at the step it was in.
    """
    seconds: dict[str, float] = {}
    started = time.monotonic()
    titles = count(1)
    steps = 2 + len(METHODS) + 1 + 1 + len(METHODS)

    @contextmanager
    def step(title: str) -> Iterator[None]:
        console.print(f"{next(titles)}/{steps} {title}", style="bold")
        start = time.monotonic()
        yield
        seconds[title] = round(time.monotonic() - start, 1)

    rates = {method: RATES[method] for method in METHODS}
    with whole_folder(out, {"command": "demo", "settings": asdict(settings), "rates": rates}) as folder:
        with step(f"build {settings.pairs} preference pairs and their rejected images"):
            build_pairs(folder / "pairs", settings.pairs, settings.seed, "pairs")
        with step("rank them from easy to hard by the model's entropy"):
            if not (folder / "ranked").exists():
                rank(folder / "pairs", WEIGHTS, folder / "ranked", RankSettings())
        models = {"base": WEIGHTS}
        for method, rate in rates.items():
            with step(f"train {method} at rate {rate}"):
                models[method] = folder / method / "model"
                if not (folder / method).exists():
                    chosen = TrainSettings(method=method, learning_rate=rate, seed=settings.seed)
                    train(folder / "ranked", WEIGHTS, folder / method, chosen)
        with step(f"draw {settings.scenes} held-out scenes"):
            if not (folder / "heldout").exists():
                draw_book(folder / "heldout", count=settings.scenes, seed=settings.seed, asked=ASKED_SCENES)
            build_pairs(folder / "heldout_pairs", settings.dependence_pairs, settings.seed, "heldout")
        results: dict[str, Any] = {"models": {}}
        for name, model in models.items():
            with step(f"ask and score {name}"):
                results["models"][name] = score(
                    model, name, scenes=folder / "heldout", pairs=folder / "heldout_pairs", answers=folder / "answers"
                )
        write_json(folder / "results.json", results | {"settings": asdict(settings), "versions": versions()})
        write_json(folder / "seconds.json", seconds)
        write_report(folder)
    console.print(table(results))
    console.print(f"{time.monotonic() - started:.0f} s. Open {out / 'report.html'}; figures in {out / 'results.json'}")
    return results


def build_pairs(out: Path, pairs: int, seed: int, split: str) -> None:
    """Build `pairs` preference records of the picture book, unless `out` holds them already."""
    if not out.exists():
        build(
            PictureBookSource(pairs, seed=seed, split=split),
            out,
            BuildSettings(seed=seed),
            DatasetRegions(),
            progress=lambda rows: track(rows, "building"),
        )


def score(model: Path, name: str, *, scenes: Path, pairs: Path, answers: Path) -> dict[str, float]:
    """Ask `model` about the book `scenes` and score its answers, which are kept in `answers` under `name`.

    Image dependence is measured on the records in `pairs`. Returns percents, words for the length, and nats.
    """
    files = {kind: answers / f"{name}_{kind}.jsonl" for kind in ("captions", "existence")}
    for kind, file in files.items():
        if not file.exists():
            answer(scenes / f"{kind}.jsonl", model, scenes, file, AnswerSettings(max_new_tokens=128, batch_size=64))
    captions = chair(files["captions"], scenes / "annotations.jsonl")
    questions = existence(files["existence"], scenes / "existence.jsonl")
    return {
        "chair_s": captions["chair_s"],
        "chair_i": captions["chair_i"],
        "cover": captions["recall"],
        "length": captions["length"],
        "existence_accuracy": questions["accuracy"],
    } | image_dependence(load_model(model), load_processor(model), read_dataset(pairs))


def table(results: dict[str, Any]) -> Table:
    """Model by figure."""
    shown = Table("model", *FIGURES.values(), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)  # for 80 columns
    for name, figures in results["models"].items():
        shown.add_row(name, *(f"{figures[key]:.1f}" for key in FIGURES))
    return shown
