"""The steps from a source's record to a record with its rejected images (paper, section 3.1)."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
from PIL import Image

from mfpo.build.corruptions import CORRUPTIONS, Edit
from mfpo.build.keywords import rank_keywords
from mfpo.build.noise import Pixels, dilate
from mfpo.build.regions import Search, Segmenter
from mfpo.build.settings import BuildSettings
from mfpo.errors import RecordError
from mfpo.images import decode_image, encode_image
from mfpo.masks import Mask, decode_mask
from mfpo.records import Corruption, Keyword, Message, Record, Region, SourceRecord, answer_text


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
    """The record with the keywords of its chosen answer; with `differing`, those that the rejected one lacks."""
    against = answer_text(record["rejected"]) if settings.differing else ""
    return Draft(record, rank_keywords(answer_text(record["chosen"]), settings, against=against))


def find_regions(drafts: Sequence[Draft], segmenter: Segmenter) -> list[list[Region] | RecordError]:
    """The regions of each draft's keywords in all its images, or why they cannot be searched."""
    searches = [
        Search(draft.record, number, pixels, draft.keywords)
        for draft in drafts
        for number, pixels in enumerate(draft.pixels)
    ]
    results = iter(segmenter(searches))
    return [_join([next(results) for _ in draft.pixels]) for draft in drafts]


def _join(results: Sequence[list[Region] | RecordError]) -> list[Region] | RecordError:
    regions: list[Region] = []
    for result in results:
        if isinstance(result, RecordError):
            return result
        regions += result
    return regions


def finish_record(draft: Draft, regions: list[Region], settings: BuildSettings) -> tuple[Record, float]:
    """The record with its rejected images, and the mean share of their area that is destroyed.

    The noise depends on the seed and the record's id alone. Raises RecordError when a mask does not fit its image.
    """
    fallback = settings.needs_regions and not regions
    # The paper's own fallback: where no keyword finds a region, the whole image.
    corrupt = CORRUPTIONS["global" if fallback else settings.corruption]
    rng = generator(settings.seed, draft.record["id"])
    if corrupt.edits_records:
        edit = corrupt.edit(draft.record, regions, rng, settings)
    else:
        edit = _corrupted(draft, regions, corrupt, rng, settings)
    rejected_images = [
        encode_image(Image.fromarray(image), settings.image_format) if isinstance(image, np.ndarray) else image
        for image in edit.rejected_images
    ]
    corruption = Corruption(
        kind=settings.corruption,
        schedule=settings.schedule,
        step=settings.noise_step,
        seed=settings.seed,
        fallback=fallback,
    )
    columns = {
        "rejected_images": rejected_images,
        "counter": edit.counter and [Message(role="assistant", content=edit.counter)],
        "keywords": draft.keywords,
        "regions": edit.regions,
        "corruption": corruption,
    }
    return cast(Record, draft.record | columns), edit.area


def _corrupted(
    draft: Draft,
    regions: list[Region],
    corrupt: Callable[..., tuple[Pixels, float]],
    rng: np.random.Generator,
    settings: BuildSettings,
) -> Edit:
    """The rejected image of each image; no answer to it is known."""
    rejected_images, areas = [], []
    for number, pixels in enumerate(draft.pixels):
        mask = dilate(union(regions, number, pixels.shape), settings.mask_dilate)
        rejected, area = corrupt(pixels, mask, rng, settings)
        rejected_images.append(rejected)
        areas.append(area)
    return Edit(rejected_images, None, regions, float(np.mean(areas)))


def build_record(record: SourceRecord, settings: BuildSettings, segmenter: Segmenter | None) -> tuple[Record, float]:
    """All steps for one record: with its rejected images, and the mean share of their area that is destroyed.

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
