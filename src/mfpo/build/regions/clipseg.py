"""Regions by CLIPSeg (Lüddecke and Ecker, CVPR 2022): from a keyword to its mask in one step, coarse but cheap."""

from collections.abc import Sequence

from transformers import CLIPSegForImageSegmentation, ViTImageProcessorPil

from mfpo.build.regions import Search, segmenter
from mfpo.build.regions.vision import (
    Found,
    batches,
    encode_images,
    encode_texts,
    load_image_processor,
    load_tokenizer,
    load_vision_model,
    model_state,
    resize_masks,
    search_images,
)
from mfpo.build.settings import RegionSettings
from mfpo.errors import RecordError
from mfpo.records import Region

DEFAULT = "CIDAS/clipseg-rd64-refined"


@segmenter("clipseg")
class ClipSeg:
    """CLIPSeg in the folder, or of the hub's, `name`, or DEFAULT. Raises MfpoError when it cannot be loaded."""

    def __init__(self, name: str, settings: RegionSettings = RegionSettings()) -> None:
        self._model, folder = load_vision_model(name or DEFAULT, {"clipseg": CLIPSegForImageSegmentation})
        self._processor = load_image_processor(ViTImageProcessorPil, folder)
        self._tokenizer = load_tokenizer(folder)
        self._settings = settings
        self.provenance = {"clipseg": model_state(folder)}

    def __call__(self, searches: Sequence[Search]) -> list[list[Region] | RecordError]:
        """The regions of the keywords; the score is the mean probability in the mask."""
        return search_images(searches, self._settings, self._find)

    def _find(self, searches: Sequence[Search]) -> list[list[Found]]:
        pixels = encode_images(self._processor, searches).pixel_values
        pairs = [(number, keyword["text"]) for number, s in enumerate(searches) for keyword in s.keywords]
        scored_masks: list[list[Found]] = [[] for _ in searches]
        for some in batches(pairs, self._settings.region_batch):
            numbers, texts = zip(*some, strict=True)
            prompts = encode_texts(self._tokenizer, texts, self._model)
            logits = self._model(**prompts, pixel_values=pixels[list(numbers)]).logits
            for number, masks in zip(numbers, logits[:, None], strict=True):
                probability = resize_masks(masks, searches[number])[0].sigmoid()
                mask = probability > self._settings.mask_threshold
                scored_masks[number].append((mask, float(probability[mask].mean()) if mask.any() else 0.0))
        return scored_masks
