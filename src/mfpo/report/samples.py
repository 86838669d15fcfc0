"""A preference record as the page shows it: small images, regions in colour, marked answers."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageFilter
from rich.console import Console
from rich.progress import track

from mfpo.dataset import TEXT_COLUMNS, read_dataset
from mfpo.images import changed_share, decode_image
from mfpo.masks import decode_mask
from mfpo.records import NOISY, Record, Region, answer_text
from mfpo.report.palette import PALETTE
from mfpo.report.texts import Piece, claim_spans, cut, difference_spans, keyword_spans

THUMBNAIL_WIDTH = 320
SMALL_DRAWING = 128
NEEDED = (*TEXT_COLUMNS, "rejected_images", "keywords", "regions", "corruption")


class ShownRecord(Record, total=False):
    """A record of any stage: after `mfpo rank` with the two columns, after `mfpo pairs` without what `build` adds."""

    entropy: float
    level: str


@dataclass(frozen=True)
class Picture:
    """An image as a data URI; a small drawing is `pixelated`, so that it can be shown larger than it is."""

    uri: str
    width: int
    height: int
    pixelated: bool


@dataclass(frozen=True)
class Views:
    """One image of a record: the original m, its regions, the rejected m'; before `mfpo build` only the first."""

    original: Picture
    regions: Picture | None
    rejected: Picture | None


@dataclass(frozen=True)
class ScoredKeyword:
    """A keyword; `share` is its score as a share of the best one, `mark` the colour of its region, if it has one."""

    text: str
    score: float
    share: float
    mark: str


@dataclass(frozen=True)
class Sample:
    """What the page shows of a record; `destroyed` is the share of pixels in which m' differs from m.

    `counter` is the right answer to m', if it is known, and `step` that of the noise, if there is any.
    """

    id: str
    views: list[Views]
    question: str
    chosen: list[Piece]
    rejected: list[Piece]
    keywords: list[ScoredKeyword]
    has_region: bool
    counter: list[Piece]
    kind: str
    step: int | None
    fallback: bool
    destroyed: float
    entropy: float | None
    level: str | None


def read_samples(dataset: datasets.Dataset, limit: int) -> list[Sample]:
    """The records of a dataset, or `limit` of them at even distances."""
    # Arrow rows hold images as the bytes that records.py works with; plain rows would hold them decoded.
    rows = dataset.with_format("arrow")
    shown = track(evenly(len(dataset), limit), "drawing records", console=Console(stderr=True))
    return [sample(rows[index : index + 1].to_pylist()[0]) for index in shown]


def open_samples(folder: Path, *, is_built: bool = True) -> datasets.Dataset:
    """Open a dataset folder that has all that a sample shows; raises MfpoError when it has not.

    Without `is_built` it may also be one of `mfpo pairs`.
    """
    return read_dataset(folder, needs=NEEDED if is_built else TEXT_COLUMNS)


def evenly(count: int, limit: int) -> list[int]:
    """At most `limit` evenly spaced indices below `count`, so that nobody picks the best-looking ones.

    >>> evenly(10, 4)
    [0, 2, 5, 7]
    """
    if count <= limit:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def sample(record: ShownRecord) -> Sample:
    """Make a record ready for the page."""
    originals = [decode_image(image) for image in record["images"]]
    rejected_images = [decode_image(image) for image in record.get("rejected_images") or []]
    regions, corruption = record.get("regions") or [], record.get("corruption")
    marks = {keyword: f"k{number % len(PALETTE)}" for keyword, number in _numbers(regions).items()}
    scores = {keyword["text"]: keyword["score"] for keyword in record.get("keywords") or []}
    counter, chosen = answer_text(record.get("counter") or []), answer_text(record["chosen"])
    best = max(scores.values(), default=0.0) or 1.0
    shown = {keyword: marks.get(keyword, "no-region") for keyword in scores}
    return Sample(
        id=record["id"],
        views=[
            _views(original, rejected, [region for region in regions if region["image"] == number])
            for number, (original, rejected) in enumerate(zip_longest(originals, rejected_images))
        ],
        question=answer_text(record["prompt"]),
        chosen=_marked(record, "chosen", "rejected", shown),
        rejected=_marked(record, "rejected", "chosen", shown),
        keywords=[
            ScoredKeyword(text, score, max(score, 0.0) / best, marks.get(text, "")) for text, score in scores.items()
        ],
        has_region=bool(regions),
        counter=cut(counter, difference_spans(counter, chosen)),
        kind=corruption["kind"] if corruption else "",
        step=corruption["step"] if corruption and corruption["kind"] in NOISY else None,
        fallback=bool(corruption and corruption["fallback"]),
        destroyed=float(np.mean([*map(changed_share, originals, rejected_images)] or [0.0])),
        entropy=record.get("entropy"),
        level=record.get("level"),
    )


def _marked(record: Any, name: str, other: str, keywords: Mapping[str, str]) -> list[Piece]:
    """An answer with its keywords, its claims, and what the other one does not have."""
    text = answer_text(record[name])
    claims = [claim for claim in record.get("claims") or [] if claim["answer"] == name]
    spans = keyword_spans(text, keywords) + claim_spans(text, claims)
    return cut(text, spans + difference_spans(text, answer_text(record[other])))


def draw_regions(image: Image.Image, regions: Sequence[Region]) -> Image.Image:
    """A copy of `image` with each region under a translucent colour and in an outline of it, one colour a keyword.

    Masks are scaled to the image. The outline runs outside the mask, so that it hides nothing of a small object.
    """
    drawn = image.convert("RGB").copy()
    numbers = _numbers(regions)
    around = ImageFilter.BoxBlur(1 if max(image.size) <= SMALL_DRAWING else 2)
    for region in regions:
        colour = ImageColor.getrgb(PALETTE[numbers[region["keyword"]] % len(PALETTE)])
        mask = Image.fromarray(decode_mask(region["mask"]) * np.uint8(255))
        mask = mask.resize(image.size, Image.Resampling.NEAREST)
        widened = mask.filter(around).point([0] + [255] * 255)
        drawn.paste(colour, mask=mask.point([level * 2 // 5 for level in range(256)]))
        drawn.paste(colour, mask=ImageChops.subtract(widened, mask))
    return drawn


def picture(image: Image.Image) -> Picture:
    """`image` for the page: a small drawing as PNG, pixel by pixel; anything else as a JPEG thumbnail."""
    buffer = io.BytesIO()
    is_small = max(image.size) <= SMALL_DRAWING
    image.save(buffer, **({"format": "PNG"} if is_small else {"format": "JPEG", "quality": 80}))
    text = base64.b64encode(buffer.getvalue()).decode()
    kind = "png" if is_small else "jpeg"
    return Picture(f"data:image/{kind};base64,{text}", *image.size, pixelated=is_small)


def thumbnail(image: Image.Image) -> Image.Image:
    """`image`, made narrower where it is wider than a thumbnail.

    Averaging weakens noise; a vision tower that resizes a photo to 336 pixels sees it weakened in the same way.
    """
    small = image.copy()
    small.thumbnail((THUMBNAIL_WIDTH, 3 * THUMBNAIL_WIDTH), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return small


def _views(original: Image.Image, rejected: Image.Image | None, regions: Sequence[Region]) -> Views:
    small = thumbnail(original)
    if rejected is None:
        return Views(picture(small), None, None)
    return Views(picture(small), picture(draw_regions(small, regions)), picture(thumbnail(rejected)))


def _numbers(regions: Iterable[Region]) -> dict[str, int]:
    """Number the keywords that have a region, in the order of the regions."""
    keywords = dict.fromkeys(region["keyword"] for region in regions)
    return {keyword: number for number, keyword in enumerate(keywords)}
