"""The records that a probe asks about: one image, one question, and the regions of the chosen answer's keywords."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import datasets
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from mfpo.build.steps import union
from mfpo.dataset import TEXT_COLUMNS, read_dataset
from mfpo.errors import MfpoError, RecordError
from mfpo.images import decode_image
from mfpo.masks import Mask
from mfpo.records import Message
from mfpo.report.samples import evenly

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """A record opened: `masks` has the region of each keyword that was found, (height, width) as the image."""

    id: str
    image: Image.Image
    prompt: list[Message]
    chosen: list[Message]
    masks: dict[str, Mask]


@dataclass(frozen=True)
class Cases:
    """The `rows` of a dataset that a probe can use, and why it cannot use the others, by id."""

    dataset: datasets.Dataset
    rows: list[int]
    set_aside: dict[str, str]

    def open(self, rows: Sequence[int]) -> list[Case]:
        return [open_case(self.dataset, row) for row in rows]

    def reasons(self) -> dict[str, int]:
        """How many records were set aside for which reason."""
        return dict(Counter(self.set_aside.values()).most_common())


def read_cases(data: Path, limit: int | None, check: Callable[[Case], Any]) -> Cases:
    """The records of a folder of `mfpo build`, or `limit` of them at even distances.

    A record that cannot be opened, or of which `check` raises RecordError, is set aside. Raises MfpoError when none is
    left.
    """
    # Arrow rows hold images as bytes, so that a broken one shows where it is decoded here.
    dataset = read_dataset(data, needs=(*TEXT_COLUMNS, "regions")).with_format("arrow")
    chosen = evenly(len(dataset), limit or len(dataset))
    rows, set_aside = [], {}
    for row in progress(chosen, "looking at the records", len(chosen)):
        try:
            check(open_case(dataset, row))
            rows.append(row)
        except RecordError as error:
            set_aside[dataset[row : row + 1]["id"][0].as_py()] = str(error)
    if not rows:
        reason = next(iter(set_aside.values()))
        raise MfpoError(f"{data}: none of {len(chosen)} records can be used (the first: {reason})")
    return Cases(dataset, rows, set_aside)


def open_case(dataset: datasets.Dataset, row: int) -> Case:
    """Raises RecordError when the record has several images or turns, a broken image, or no region."""
    record = dataset[row : row + 1].to_pylist()[0]
    if len(record["images"]) != 1:
        raise RecordError(f"it has {len(record['images'])} images; probes take records with one")
    if len(record["prompt"]) != 1:
        raise RecordError(f"its prompt has {len(record['prompt'])} turns; probes take records with one question")
    if not record["regions"]:
        raise RecordError("none of its keywords has a region")
    image = decode_image(record["images"][0])
    regions: dict[str, list[Any]] = {}
    for region in record["regions"]:
        regions.setdefault(region["keyword"], []).append(region)
    masks = {keyword: union(of_word, 0, (image.height, image.width)) for keyword, of_word in regions.items()}
    return Case(record["id"], image, record["prompt"], record["chosen"], masks)


def progress(steps: Iterable[T], text: str, total: int) -> Iterable[T]:
    """The steps behind a bar on stderr."""
    # A folder may be called v1[/x].
    return track(steps, escape(text), total=total, console=Console(stderr=True))
