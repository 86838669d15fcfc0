"""Regions from the source's own masks, such as the picture book's."""

from collections.abc import Sequence

from mfpo.build.regions import OTHER_CHOICES, Search, segmenter
from mfpo.build.regions.matching import match_regions
from mfpo.build.settings import RegionSettings
from mfpo.errors import MfpoError, RecordError
from mfpo.records import Region


@segmenter("dataset")
def open_dataset(where: str, settings: RegionSettings) -> "DatasetRegions":
    return DatasetRegions(settings)


class DatasetRegions:
    """The record's `objects`, which belong to its first image."""

    provenance = "dataset"

    def __init__(self, settings: RegionSettings = RegionSettings()) -> None:
        self._settings = settings

    def __call__(self, searches: Sequence[Search]) -> list[list[Region] | RecordError]:
        """The regions of the keywords by name.

        Raises MfpoError, which ends the run, when the source has no masks: it needs another segmenter.
        """
        return [self._search(search) for search in searches]

    def _search(self, search: Search) -> list[Region] | RecordError:
        source, objects = search.record["source"], search.record["objects"]
        if objects is None:
            raise MfpoError(
                f"row {source['row']} of {source['dataset']} has no object masks; give --regions {OTHER_CHOICES}"
            )
        if search.number > 0:
            return []
        try:
            return match_regions(search, [(entry["name"], entry["mask"]) for entry in objects], self._settings)
        except RecordError as error:
            return error
