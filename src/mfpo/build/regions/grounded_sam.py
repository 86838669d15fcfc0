"""Regions as Grounded SAM finds them (Ren et al. 2024): a detector's boxes of a keyword, and SAM's masks in them."""

from collections.abc import Sequence

import torch

from mfpo.build.regions import Search, segmenter
from mfpo.build.regions.detectors import load_detector
from mfpo.build.regions.sam import Sam
from mfpo.build.regions.vision import Found, search_images, size_of
from mfpo.build.settings import RegionSettings
from mfpo.errors import MfpoError, RecordError
from mfpo.records import Region

DEFAULT = "IDEA-Research/grounding-dino-base,facebook/sam-vit-huge"


@segmenter("grounded-sam")
class GroundedSam:
    """`names` are DETECTOR,SAM: Grounding DINO or OWLv2, and SAM or SAM 2; folders or names on the hub; or DEFAULT.

    Raises MfpoError when one of them cannot be loaded.
    """

    def __init__(self, names: str, settings: RegionSettings = RegionSettings()) -> None:
        detector, _, sam = (names or DEFAULT).partition(",")
        if not detector or not sam:
            raise MfpoError(f"grounded-sam={names} does not name two models; give grounded-sam=DETECTOR,SAM")
        self._detect = load_detector(detector, settings)
        self._sam = Sam(sam, settings)
        self._settings = settings
        self.provenance = {"grounded-sam": [self._detect.provenance, self._sam.provenance]}

    def __call__(self, searches: Sequence[Search]) -> list[list[Region] | RecordError]:
        """The regions of the keywords, each the union of its boxes' masks; the score is the best box's."""
        return search_images(searches, self._settings, self._find)

    def _find(self, searches: Sequence[Search]) -> list[list[Found]]:
        detected = self._detect(searches)
        # SAM's vision tower costs most, so it sees only images with a box.
        seen = [number for number, keywords in enumerate(detected) if any(len(boxes.scores) for boxes in keywords)]
        images = dict(zip(seen, self._sam.embed([searches[n] for n in seen]), strict=True)) if seen else {}
        scored_masks: list[list[Found]] = []
        for number, (search, keywords) in enumerate(zip(searches, detected, strict=True)):
            scored_masks.append([])
            for corners, scores in keywords:
                if len(scores):
                    scored_masks[number].append((self._sam.union(images[number], corners), float(scores.max())))
                else:
                    scored_masks[number].append((torch.zeros(size_of(search), dtype=torch.bool), 0.0))
        return scored_masks
