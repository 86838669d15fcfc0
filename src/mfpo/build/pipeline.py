"""Paper 3.1, from end to end: each record gets a rejected image whose key regions are noised."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mfpo.build.keywords import KeywordSettings, rank_keywords
from mfpo.build.noise import STEPS, Kind, Schedule, corrupt
from mfpo.build.regions import CHOICES, Segmenter
from mfpo.build.shards import Note, SetAside, Summary, merge_notes
from mfpo.errors import MfpoError, RecordError, SettingError
from mfpo.folders import whole_folder, write_json
from mfpo.masks import Mask, decode_mask
from mfpo.records import (
    Corruption,
    Record,
    Region,
    SourceRecord,
    answer_text,
    decode_image,
    encode_image,
    write_shard,
)
from mfpo.settings import setting
from mfpo.sources import Source

Row = tuple[int, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class BuildSettings(KeywordSettings):
    corruption: Kind = setting("region", "how the rejected image is made: region (paper), global, random20 or crop")
    schedule: Schedule = setting("sigmoid", "noise schedule: sigmoid (VCD's), linear (DDPM's) or cosine")
    noise_step: int = setting(500, "diffusion step of the noise; 500 of 1000 is the paper's best (Figure 8)")
    seed: int = setting(0, "seed of the noise; each record draws from the seed and its own id")
    shard_size: int = setting(256, "source rows a shard; a killed run goes on after its last whole shard")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.noise_step < STEPS:
            raise SettingError(f"noise_step is {self.noise_step}, but must be from 0 to {STEPS - 1}")
        if self.seed < 0:
            raise SettingError(f"seed is {self.seed}, but must be 0 or more")
        if self.shard_size < 1:
            raise SettingError(f"shard_size is {self.shard_size}, but must be 1 or more")


def build(
    source: Source,
    out: Path,
    settings: BuildSettings,
    segmenter: Segmenter | None = None,
    *,
    made_by: Mapping[str, Any] | None = None,
    progress: Callable[[Iterable[dict[str, Any]]], Iterable[dict[str, Any]]] = iter,
) -> Summary:
    """Write the records of `source` with rejected images to the folder `out`; docs/build.md names its files.

    A row that cannot be a record goes to `rejected_rows.jsonl` with its reason. A killed run goes on where it stopped
    when it is started again with the same settings and `made_by`, and ends with the same shards. Of the source only the
    name is compared, so `made_by` must hold what else decides its rows, as size and time of each of its files.
    Raises MfpoError when `out` exists, when the corruption needs a segmenter and has none, or when no row can be used.
    """
    if settings.corruption == "region" and segmenter is None:
        raise MfpoError(f"corruption region needs regions; {CHOICES}")
    started = time.monotonic()
    with whole_folder(out, {"source": source.name, **(made_by or {}), "settings": asdict(settings)}) as folder:
        seen: set[str] = set()
        for number, rows in enumerate(_chunks(enumerate(progress(source)), settings.shard_size)):
            note = folder / f"train-{number:05d}.json"
            if not note.exists():
                write_json(note, _build_shard(rows, note.with_suffix(".parquet"), source, settings, segmenter, seen))
            seen.update(json.loads(note.read_text(encoding="utf-8"))["ids"])
        return merge_notes(folder, source.name, started)


def build_record(record: SourceRecord, settings: BuildSettings, segmenter: Segmenter | None) -> tuple[Record, float]:
    """The record with its rejected images, and the mean share of their area that is destroyed.

    The noise depends on the seed and the record's id alone. Raises RecordError when a mask does not fit its image.
    """
    keywords = rank_keywords(answer_text(record["chosen"]), settings)
    pixels = [np.asarray(decode_image(image)) for image in record["images"]]
    regions: list[Region] = []
    if segmenter is not None:
        regions = [region for image in range(len(pixels)) for region in segmenter(record, image, keywords)]
    fallback = settings.corruption == "region" and not regions
    # The paper's own fallback: where no keyword finds a region, the whole image.
    kind: Kind = "global" if fallback else settings.corruption
    rng = _generator(settings.seed, record["id"])
    rejected_images, areas = [], []
    for number, image in enumerate(pixels):
        mask = _union(regions, number, image.shape)
        rejected, area = corrupt(image, mask, kind=kind, step=settings.noise_step, schedule=settings.schedule, rng=rng)
        rejected_images.append(encode_image(Image.fromarray(rejected)))
        areas.append(area)
    built = Record(
        **record,
        rejected_images=rejected_images,
        keywords=keywords,
        regions=regions,
        corruption=Corruption(
            kind=settings.corruption,
            schedule=settings.schedule,
            step=settings.noise_step,
            seed=settings.seed,
            fallback=fallback,
        ),
    )
    return built, float(np.mean(areas))


def _build_shard(
    rows: Iterable[Row],
    path: Path,
    source: Source,
    settings: BuildSettings,
    segmenter: Segmenter | None,
    seen: set[str],
) -> Note:
    """Write the records of `rows` to `path`, if there are any; `seen` are the ids of the shards before."""
    records: dict[str, Record] = {}
    set_aside: list[SetAside] = []
    area = 0.0
    for number, row in rows:
        try:
            record = source.record(row, number)
            if record["id"] in seen or record["id"] in records:
                raise RecordError(f"id {record['id']!r} is that of an earlier row")
            records[record["id"]], share = build_record(record, settings, segmenter)
        except RecordError as error:
            name = row.get("id")
            set_aside.append(SetAside(row=number, id=None if name is None else str(name), reason=str(error)))
        else:
            area += share
    if records:
        write_shard(list(records.values()), path)
    return Note(
        read=len(records) + len(set_aside),
        ids=list(records),
        set_aside=set_aside,
        fallback=sum(record["corruption"]["fallback"] for record in records.values()),
        keywords=sum(len(record["keywords"]) for record in records.values()),
        area=area,
    )


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _generator(seed: int, name: str) -> np.random.Generator:
    """A generator for one record, so that neither order nor sharding changes its noise."""
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def _union(regions: Iterable[Region], image: int, shape: tuple[int, ...]) -> Mask:
    """The union of the regions of image number `image`, (height, width). Raises RecordError when sizes differ."""
    union = np.zeros(shape[:2], dtype=bool)
    for region in regions:
        if region["image"] != image:
            continue
        if list(region["mask"]["size"]) != list(union.shape):
            raise RecordError(
                f"image is {union.shape[0]} x {union.shape[1]}, but its masks are {region['mask']['size']}"
            )
        union |= decode_mask(region["mask"])
    return union
