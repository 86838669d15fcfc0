"""Regions from the masks that the source itself brings, as the picture book does."""

from collections.abc import Sequence

from mfpo.build.regions import CHOICES, match_regions
from mfpo.errors import MfpoError
from mfpo.records import Keyword, Region, SourceRecord


class DatasetRegions:
    """The record's `objects`, which belong to its first image."""

    def __call__(self, record: SourceRecord, image: int, keywords: Sequence[Keyword]) -> list[Region]:
        """The regions of `keywords` by name.

        Raises MfpoError, which ends the run, when the source brings no masks: such a source needs another segmenter.
        """
        if record["objects"] is None:
            raise MfpoError(
                f"row {record['source']['row']} of {record['source']['dataset']} brings no object masks; {CHOICES}"
            )
        if image > 0:
            return []
        return match_regions(keywords, [(found["name"], found["mask"]) for found in record["objects"]], image)
