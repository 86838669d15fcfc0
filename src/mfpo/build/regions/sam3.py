"""Regions by SAM 3 (Carion et al. 2025): all instances of what a short phrase names, with a mask and a score each."""

from collections.abc import Sequence

from transformers import Sam3Model, ViTImageProcessorPil
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

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
    search_images,
    unite,
)
from mfpo.build.settings import RegionSettings
from mfpo.errors import RecordError
from mfpo.records import Region

DEFAULT = "facebook/sam3"


@segmenter("sam3")
class Sam3Regions:
    """SAM 3 in the folder, or of the hub's, `name`, or DEFAULT. Raises MfpoError when it cannot be loaded."""

    def __init__(self, name: str, settings: RegionSettings = RegionSettings()) -> None:
        # The published checkpoint is that of the video model, which holds the image model.
        self._model, folder = load_vision_model(name or DEFAULT, {"sam3": Sam3Model, "sam3_video": Sam3Model})
        # Sam3ImageProcessor wants torchvision; it resizes to a square and normalises, as ViT's does.
        self._processor = load_image_processor(ViTImageProcessorPil, folder)
        self._tokenizer = load_tokenizer(folder)
        self._box_threshold = 0.5 if settings.box_threshold is None else settings.box_threshold
        self._settings = settings
        self.provenance = {"sam3": model_state(folder)}

    def __call__(self, searches: Sequence[Search]) -> list[list[Region] | RecordError]:
        """The regions of the keywords, each the union of its instances; the score is the best instance's."""
        return search_images(searches, self._settings, self._find)

    def _find(self, searches: Sequence[Search]) -> list[list[Found]]:
        images = self._model.get_vision_features(encode_images(self._processor, searches).pixel_values)
        pairs = [(number, keyword["text"]) for number, s in enumerate(searches) for keyword in s.keywords]
        scored_masks: list[list[Found]] = [[] for _ in searches]
        for some in batches(pairs, self._settings.region_batch):
            numbers, texts = zip(*some, strict=True)
            prompts = encode_texts(self._tokenizer, texts, self._model)
            output = self._model(vision_embeds=_rows(images, list(numbers)), **prompts)
            # An instance counts as sure as it is, times how sure the model is that there is any.
            scores = output.pred_logits.float().sigmoid() * output.presence_logits.float().sigmoid()
            for number, masks, score in zip(numbers, output.pred_masks, scores, strict=True):
                is_sure = score > self._box_threshold
                mask = unite(masks[is_sure].float().sigmoid(), searches[number], self._settings.mask_threshold)
                scored_masks[number].append((mask, float(score[is_sure].max()) if is_sure.any() else 0.0))
        return scored_masks


def _rows(images: Sam3VisionEncoderOutput, numbers: list[int]) -> Sam3VisionEncoderOutput:
    """The features of the images `numbers`, so that each image is seen once however many keywords it has."""
    return Sam3VisionEncoderOutput(
        fpn_hidden_states=tuple(level[numbers] for level in images.fpn_hidden_states),
        fpn_position_encoding=tuple(level[numbers] for level in images.fpn_position_encoding),
    )
