"""The cost of a build against decoding and re-encoding the same images alone, and its memory at ten times the records.

python benchmarks/build.py --json build.json
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from mfpo.build.pipeline import build_into
from mfpo.build.regions import Segmenter
from mfpo.build.regions.coco import CocoRegions
from mfpo.build.regions.dataset import DatasetRegions
from mfpo.build.settings import BuildSettings
from mfpo.images import encode_image
from mfpo.picturebook.corrections import absent_kinds, correct
from mfpo.picturebook.scenes import make_scene
from mfpo.picturebook.source import PictureBookSource
from mfpo.picturebook.splits import scene_seeds
from mfpo.picturebook.texts import caption
from mfpo.records import SourceRecord
from mfpo.sources import Source, open_source

PHOTOS = Path(os.environ.get("MFPO_REFERENCE_DATA", "../shared/data")) / "photos"


class Repeated:
    """The rows of a source again and again, each time with other ids."""

    def __init__(self, source: Source, times: int) -> None:
        self.source, self.times, self.name = source, times, source.name

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for time_ in range(self.times):
            for row in self.source:
                yield row | {"id": f"{row['id']}-{time_}"}

    def id(self, row: dict[str, Any], number: int) -> str:
        return self.source.id(row, number)

    def record(self, row: dict[str, Any], number: int) -> SourceRecord:
        return self.source.record(row, number)


class Scenes(PictureBookSource):
    """The picture book with captions from habit in place of the model's, so that 20,000 take minutes, not an hour."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        found = 0
        for seed in scene_seeds(self.split, self.seed):
            if found == self.count:
                return
            scene = make_scene(seed)
            sample = caption(scene, np.random.default_rng(seed), prior=1.0)
            if absent_kinds(sample, scene):
                found += 1
                question, chosen = "What is in this picture?", correct(sample, scene)
                yield {"scene": seed, "question": question, "chosen": chosen, "rejected": sample}


def cost(function: Any) -> tuple[float, float]:
    """Processor and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def recode(source: Source, settings: BuildSettings) -> None:
    """Read each image of the source, decode it, and encode it again as the build does."""
    for number, row in enumerate(source):
        for image in source.record(row, number)["images"]:
            pixels = np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB"))
            encode_image(Image.fromarray(pixels), settings.image_format)


def compare(source: Source, segmenter: Segmenter, settings: BuildSettings, rounds: int = 3) -> tuple[float, float]:
    """Processor and wall time of a build as multiples of re-encoding the same images: the medians of `rounds`."""
    ratios = []
    for _ in range(rounds):
        plain = cost(lambda: recode(source, settings))
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            built = cost(partial(build_into, source, out, settings, segmenter))
        ratios.append([ours / alone for ours, alone in zip(built, plain, strict=True)])
    cpu, wall = np.median(ratios, axis=0)
    return float(cpu), float(wall)


def own_peak_rss() -> int:
    """The peak memory of this process in bytes. Not getrusage's, which counts that of the process that forked it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def peak_rss(records: int) -> int:
    """The peak memory, in bytes, of a process that builds this many records of the picture book."""
    command = [sys.executable, __file__, "--peak-rss-of", str(records)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak-rss-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_rss_of:
        with tempfile.TemporaryDirectory() as folder:
            build_into(Scenes(arguments.peak_rss_of), Path(folder) / "out", BuildSettings(), DatasetRegions())
        print(own_peak_rss())
        return
    figures: dict[str, float] = {}
    shown = Table("", "")
    if PHOTOS.is_dir():
        photos = Repeated(open_source(PHOTOS / "preferences.jsonl", images=PHOTOS), 16)
        segmenter = CocoRegions(PHOTOS / "instances.json")
        for image_format in ("webp", "png"):
            cpu, wall = compare(photos, segmenter, BuildSettings(image_format=image_format))
            figures |= {f"ratio_to_recode_{image_format}": cpu, f"wall_ratio_to_recode_{image_format}": wall}
        figures["ratio_to_recode"] = figures["ratio_to_recode_webp"]
    else:
        shown.add_row("ratio_to_recode", f"not measured: no photos at {PHOTOS}; set MFPO_REFERENCE_DATA")
    few, many = peak_rss(2_000), peak_rss(20_000)
    figures |= {"peak_rss_2000": few, "peak_rss_20000": many, "peak_rss_ratio": many / few}
    for name, value in figures.items():
        shown.add_row(name, f"{value / 2**20:,.0f} MiB" if value > 1000 else f"{value:.2f}")
    Console().print(shown)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
