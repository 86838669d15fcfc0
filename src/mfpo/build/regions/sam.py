"""Masks from boxes by SAM (Kirillov et al., ICCV 2023) or SAM 2 (Ravi et al. 2024)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import Sam2Model, SamImageProcessorPil, SamModel, ViTImageProcessorPil

from mfpo.build.regions import Search
from mfpo.build.regions.vision import (
    encode_images,
    load_image_processor,
    load_vision_model,
    model_state,
    size_of,
    unite,
)
from mfpo.build.settings import RegionSettings

# So many boxes are decoded at once: a detector may give hundreds.
_BOXES = 32


class Embedded(NamedTuple):
    """An image as the vision tower saw it, and its `inside`: (height, width) of the image in the model's square."""

    search: Search
    features: Any
    inside: tuple[int, int]


class Sam:
    """SAM or SAM 2 in the folder, or of the hub's, `name`. Raises MfpoError when it cannot be loaded."""

    def __init__(self, name: str, settings: RegionSettings = RegionSettings()) -> None:
        # The published checkpoints of SAM 2 are those of the video model, which holds the image model.
        self._model, folder = load_vision_model(name, {"sam": SamModel, "sam2": Sam2Model, "sam2_video": Sam2Model})
        self.provenance = model_state(folder)
        self._is_padded = isinstance(self._model, SamModel)
        # SAM 2 squeezes an image into its square, as ViT's processor does (its own needs torchvision).
        kind = SamImageProcessorPil if self._is_padded else ViTImageProcessorPil
        self._processor = load_image_processor(kind, folder)
        # As a logit: SAM's masks are resized as logits, and 0 is a probability of 0.5.
        self._threshold = float(torch.logit(torch.tensor(settings.mask_threshold)))

    def embed(self, searches: Sequence[Search]) -> list[Embedded]:
        """The images of `searches`, each seen once however many boxes it has."""
        encoded = encode_images(self._processor, searches)
        features = self._model.get_image_embeddings(encoded.pixel_values)
        if self._is_padded:
            insides = encoded.reshaped_input_sizes.tolist()
            return [Embedded(search, features[[i]], tuple(insides[i])) for i, search in enumerate(searches)]
        square = tuple(encoded.pixel_values.shape[-2:])
        return [Embedded(search, [level[[i]] for level in features], square) for i, search in enumerate(searches)]

    def union(self, image: Embedded, corners: Tensor) -> Tensor:
        """The union of the masks of the boxes `corners`, (n, 4) in pixels: (height, width), of booleans."""
        height, width = size_of(image.search)
        scale = corners.new_tensor([image.inside[1] / width, image.inside[0] / height] * 2)
        union = torch.zeros(height, width, dtype=torch.bool, device=corners.device)
        for some in (corners * scale).split(_BOXES):
            output = self._model(image_embeddings=image.features, input_boxes=some[None], multimask_output=False)
            union |= unite(self._inside(output.pred_masks[0, :, 0].float(), image), image.search, self._threshold)
        return union

    def _inside(self, logits: Tensor, image: Embedded) -> Tensor:
        """Masks of the model's square, (n, h, w), without what pads the image."""
        if not self._is_padded:
            return logits
        square = self._processor.pad_size
        padded = interpolate(logits[None], (square["height"], square["width"]), mode="bilinear")[0]
        return padded[:, : image.inside[0], : image.inside[1]]
