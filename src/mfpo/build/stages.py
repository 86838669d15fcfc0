"""The stages that a record goes through (paper, section 3.1): read, keywords, regions, noise."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from PIL import Image

from mfpo.build.keywords import KeywordSettings, rank_keywords
from mfpo.build.noise import REGION_KINDS, STEPS, Kind, Pixels, Schedule, corrupt, dilate
from mfpo.build.regions import RegionSettings, Search, Segmenter
from mfpo.errors import RecordError, SettingError
from mfpo.masks import Mask, decode_mask
from mfpo.records import (
    Corruption,
    Keyword,
    Record,
    Region,
    SourceRecord,
    answer_text,
    decode_image,
    encode_image,
)
from mfpo.settings import setting


@dataclass(frozen=True, kw_only=True)
class BuildSettings(KeywordSettings, RegionSettings):
    differing: bool = setting(
        False, "take as keywords what the rejected answer does not name, if there is such a thing"
    )
    corruption: Kind = setting("region", "how the rejected image is made: region (paper), global, random, crop, ...")
    schedule: Schedule = setting("sigmoid", "noise schedule: sigmoid (VCD's), linear (DDPM's) or cosine")
    noise_step: int = setting(500, "diffusion step of the noise; 500 of 1000 is the paper's best (Figure 8)")
    mask_dilate: int = setting(0, "pixels by which regions grow to each side before they are destroyed")
    image_format: Literal["webp", "png"] = setting("webp", "how rejected images are stored, both without loss")
    seed: int = setting(0, "seed of the noise; each record draws from the seed and its own id")
    shard_size: int = setting(256, "source rows a shard; a killed run goes on after its last whole shard")

    def __post_init__(self) -> None:
        KeywordSettings.__post_init__(self)
        RegionSettings.__post_init__(self)
        if not 0 <= self.noise_step < STEPS:
            raise SettingError(f"noise_step is {self.noise_step}, but must be from 0 to {STEPS - 1}")
        if self.seed >= 2**63:
            raise SettingError(f"seed is {self.seed}, but must be below 2^63")
        for name, least in (("mask_dilate", 0), ("seed", 0), ("shard_size", 1)):
            if getattr(self, name) < least:
                raise SettingError(f"{name} is {getattr(self, name)}, but must be {least} or more")

    @property
    def needs_regions(self) -> bool:
        return self.corruption in REGION_KINDS


class Draft:
    """A record and the keywords of its chosen answer."""

    def __init__(self, record: SourceRecord, keywords: Sequence[Keyword]) -> None:
        self.record = record
        self.keywords = list(keywords)

    @cached_property
    def pixels(self) -> list[Pixels]:
        """Each image, (height, width, 3). Raises RecordError when one cannot be decoded."""
        return [np.asarray(decode_image(image)) for image in self.record["images"]]

    def __getstate__(self) -> dict[str, Any]:
        # Another process decodes the images anew: they are a tenth of their pixels' size.
        return {"record": self.record, "keywords": self.keywords}


def draft_record(record: SourceRecord, settings: BuildSettings) -> Draft:
    against = answer_text(record["rejected"]) if settings.differing else ""
    return Draft(record, rank_keywords(answer_text(record["chosen"]), settings, against=against))


def find_regions(drafts: Sequence[Draft], segmenter: Segmenter) -> list[list[Region] | RecordError]:
    """The regions of each draft's keywords in all its images, or why they cannot be searched."""
    found = iter(
        segmenter(
            [
                Search(draft.record, number, pixels, draft.keywords)
                for draft in drafts
                for number, pixels in enumerate(draft.pixels)
            ]
        )
    )
    return [_join([next(found) for _ in draft.pixels]) for draft in drafts]


def _join(found: Sequence[list[Region] | RecordError]) -> list[Region] | RecordError:
    regions: list[Region] = []
    for part in found:
        if isinstance(part, RecordError):
            return part
        regions += part
    return regions


def finish_record(draft: Draft, regions: list[Region], settings: BuildSettings) -> tuple[Record, float]:
    """The record with its rejected images, and the mean share of their area that is destroyed.

    The noise depends on the seed and the record's id alone. Raises RecordError when a mask does not fit its image.
    """
    fallback = settings.needs_regions and not regions
    # The paper's own fallback: where no keyword finds a region, the whole image.
    kind: Kind = "global" if fallback else settings.corruption
    rng = generator(settings.seed, draft.record["id"])
    rejected_images, areas = [], []
    for number, pixels in enumerate(draft.pixels):
        mask = dilate(union(regions, number, pixels.shape), settings.mask_dilate)
        rejected, area = corrupt(pixels, mask, kind=kind, step=settings.noise_step, schedule=settings.schedule, rng=rng)
        rejected_images.append(encode_image(Image.fromarray(rejected), settings.image_format))
        areas.append(area)
    record = Record(
        **draft.record,
        rejected_images=rejected_images,
        keywords=draft.keywords,
        regions=regions,
        corruption=Corruption(
            kind=settings.corruption,
            schedule=settings.schedule,
            step=settings.noise_step,
            seed=settings.seed,
            fallback=fallback,
        ),
    )
    return record, float(np.mean(areas))


def build_record(record: SourceRecord, settings: BuildSettings, segmenter: Segmenter | None) -> tuple[Record, float]:
    """All stages for one record: with its rejected images, and the mean share of their area that is destroyed.

    Raises RecordError when an image cannot be decoded or searched, or a mask does not fit it.
    """
    draft = draft_record(record, settings)
    regions = find_regions([draft], segmenter)[0] if segmenter else []
    if isinstance(regions, RecordError):
        raise regions
    return finish_record(draft, regions, settings)


def generator(seed: int, id: str) -> np.random.Generator:
    """A generator for one record, so that neither order nor sharding changes its noise."""
    digest = hashlib.sha256(id.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def union(regions: Iterable[Region], number: int, shape: tuple[int, ...]) -> Mask:
    """The union of the regions of image `number`, (height, width). Raises RecordError when sizes differ."""
    mask = np.zeros(shape[:2], dtype=bool)
    for region in regions:
        if region["image"] != number:
            continue
        if list(region["mask"]["size"]) != list(mask.shape):
            raise RecordError(f"image is {mask.shape[0]} x {mask.shape[1]}, but its masks are {region['mask']['size']}")
        mask |= decode_mask(region["mask"])
    return mask
