"""Boxes from keywords: zero-shot object detectors, as Grounded SAM's first half."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
)

from mfpo.build.regions import Search
from mfpo.build.regions.vision import (
    batches,
    encode_images,
    encode_texts,
    load_image_processor,
    load_tokenizer,
    load_vision_model,
    model_state,
    size_of,
)
from mfpo.build.settings import RegionSettings
from mfpo.models import device


class Boxes(NamedTuple):
    """Where a keyword was found: `corners`, (n, 4), are x1, y1, x2, y2 in pixels; `scores`, (n,), from 0 to 1."""

    corners: Tensor
    scores: Tensor


class GroundingDino:
    """Grounding DINO (Liu et al., ECCV 2024).

    It reads all keywords of an image in one prompt ("black cat. mat."), in which no phrase sees another, and scores a
    box against each token. The prompt is put together from each keyword's own tokens, so which tokens are whose is
    known, and no phrase has to be found again in the text as in the published code. A box is taken by its best token
    (box_threshold), and belongs to each keyword of which a token fits (text_threshold).
    """

    def __init__(self, model: Any, folder: Path, settings: RegionSettings) -> None:
        self._model = model
        self.provenance = model_state(folder)
        self._processor = load_image_processor(GroundingDinoImageProcessorPil, folder)
        self._tokenizer = load_tokenizer(folder)
        # A box threshold of 0.3 and a text threshold of 0.25 are those of Grounded SAM's demo.
        self._box_threshold = 0.3 if settings.box_threshold is None else settings.box_threshold
        self._text_threshold = settings.text_threshold
        # These end a phrase; inside a keyword ("st. bernard") they would make two of it.
        self._marks = {self._tokenizer.convert_tokens_to_ids(mark) for mark in ".?"}

    def __call__(self, searches: Sequence[Search]) -> list[list[Boxes]]:
        """For each search the boxes of each keyword."""
        detections: list[list[Boxes]] = []
        # Images of several shapes would have to be padded, which changes what the backbone's windows see.
        for _, same in groupby(searches, key=size_of):
            detections += self._detect(list(same))
        return detections

    def _detect(self, searches: Sequence[Search]) -> list[list[Boxes]]:
        pixels = encode_images(self._processor, searches).pixel_values
        # Sixteen keywords of sixteen tokens fill the text that the model can read.
        longest = self._model.config.max_text_len
        rows = [(i, some) for i, s in enumerate(searches) for some in batches(s.keywords, 16)]
        detections: list[list[Boxes]] = [[] for _ in searches]
        for some in batches(rows, len(searches)):
            prompts = [self._prompt([k["text"] for k in keywords], longest // 16 - 2) for _, keywords in some]
            padded = self._tokenizer.pad({"input_ids": [ids for ids, _ in prompts]}, return_tensors="pt").to(device())
            output = self._model(
                pixel_values=pixels[[i for i, _ in some]],
                input_ids=padded.input_ids,
                attention_mask=padded.attention_mask,
            )
            for (i, _), (_, spans), logits, boxes in zip(some, prompts, output.logits, output.pred_boxes, strict=True):
                height, width = size_of(searches[i])
                scores = logits.float().sigmoid()
                corners = to_corners(boxes.float(), (width, height), (width, height))
                is_box = scores.amax(dim=-1) > self._box_threshold
                for span in spans:
                    match = scores[:, span].amax(dim=-1)
                    detections[i].append(keep(corners, match, is_box & (match > self._text_threshold)))
        return detections

    def _prompt(self, texts: Sequence[str], longest: int) -> tuple[list[int], list[slice]]:
        """The ids of "[CLS] black cat . mat . [SEP]", and where in it each text's are, `longest` at most."""
        ids, spans = [self._tokenizer.cls_token_id], []
        for text in texts:
            tokens = self._tokenizer(text.lower(), add_special_tokens=False).input_ids
            tokens = [token for token in tokens if token not in self._marks][-longest:] or [
                self._tokenizer.unk_token_id
            ]
            spans.append(slice(len(ids), len(ids) + len(tokens)))
            ids += [*tokens, self._tokenizer.convert_tokens_to_ids(".")]
        return [*ids, self._tokenizer.sep_token_id], spans


class Owlv2:
    """OWLv2 (Minderer et al., NeurIPS 2023): each box is scored against each keyword."""

    def __init__(self, model: Any, folder: Path, settings: RegionSettings) -> None:
        self._model = model
        self.provenance = model_state(folder)
        self._processor = load_image_processor(Owlv2ImageProcessorPil, folder)
        self._tokenizer = load_tokenizer(folder)
        # transformers' default.
        self._box_threshold = 0.1 if settings.box_threshold is None else settings.box_threshold

    def __call__(self, searches: Sequence[Search]) -> list[list[Boxes]]:
        """For each search the boxes of each keyword."""
        most = max(len(search.keywords) for search in searches)
        queries = []
        for search in searches:
            # The prompt of the published examples.
            texts = [f"a photo of a {keyword['text']}" for keyword in search.keywords]
            ids = encode_texts(self._tokenizer, texts, self._model).input_ids
            queries.append(pad(ids, (0, 0, 0, most - len(ids))))  # a query that starts with 0 is none
        pixels = encode_images(self._processor, searches).pixel_values
        output = self._model(input_ids=torch.cat(queries), pixel_values=pixels)
        detections = []
        for search, logits, boxes in zip(searches, output.logits, output.pred_boxes, strict=True):
            height, width = size_of(search)
            side = max(height, width)  # the image was padded to a square, at the right or at the bottom
            corners = to_corners(boxes.float(), (side, side), (width, height))
            scores = logits.float().sigmoid()[:, : len(search.keywords)]
            detections.append([keep(corners, match, match > self._box_threshold) for match in scores.T])
        return detections


def load_detector(name: str, settings: RegionSettings) -> GroundingDino | Owlv2:
    """The detector in the folder, or of the hub's, `name`. Raises MfpoError when it cannot be loaded."""
    kinds = {"grounding-dino": GroundingDinoForObjectDetection, "owlv2": Owlv2ForObjectDetection}
    model, folder = load_vision_model(name, kinds)
    detector = GroundingDino if isinstance(model, GroundingDinoForObjectDetection) else Owlv2
    return detector(model, folder, settings)


def to_corners(boxes: Tensor, scale: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Relative (centre x, centre y, width, height), (n, 4), as corners in an image of `size` (width, height).

    >>> to_corners(torch.tensor([[0.5, 0.5, 0.5, 2.0]]), (100, 100), (100, 60)).tolist()
    [[25.0, 0.0, 75.0, 60.0]]
    """
    centre, extent = boxes[:, :2], boxes[:, 2:]
    corners = torch.cat([centre - extent / 2, centre + extent / 2], dim=1) * boxes.new_tensor(scale * 2)
    return corners.clamp(min=0).minimum(boxes.new_tensor(size * 2))


def keep(corners: Tensor, scores: Tensor, wanted: Tensor) -> Boxes:
    """The `wanted` boxes, without those that lie outside of the image."""
    wanted = wanted & (corners[:, 2:] > corners[:, :2]).all(dim=1)
    return Boxes(corners[wanted], scores[wanted])
