"""The rejected images that the data brings, such as edited photos, with the right answer to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mfpo.build.corruptions import Edit, corruption
from mfpo.build.settings import BuildSettings
from mfpo.errors import RecordError

# Settings are checked with the corruptions imported: what takes seconds only where one works.
if TYPE_CHECKING:
    from mfpo.records import Region, SourceRecord


@corruption("given", edits_records=True)
def given(record: SourceRecord, regions: list[Region], rng: np.random.Generator, settings: BuildSettings) -> Edit:
    """The record's own `rejected_images`, untouched, and its `counter`.

    Raises RecordError when there is not one rejected image an image, or when all show the same as these.
    """
    images, rejected_images = record["images"], record["rejected_images"]
    if rejected_images is None:
        raise RecordError("column 'rejected_images' is empty, but corruption=given takes the rejected images from it")
    if len(rejected_images) != len(images):
        raise RecordError(f"column 'rejected_images' has {len(rejected_images)} images, but 'images' has {len(images)}")
    from mfpo.images import changed_share, decode_image
    from mfpo.records import answer_text

    counter = answer_text(record["counter"]) if record["counter"] else None
    opened = [[decode_image(encoded) for encoded in side] for side in (images, rejected_images)]
    area = float(np.mean(list(map(changed_share, *opened))))
    if not area:
        raise RecordError("column 'rejected_images' shows the same as 'images'")
    return Edit(rejected_images, counter, [], area)
