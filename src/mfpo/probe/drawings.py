"""Pictures of what a word attends to: the image, and the attention of each model on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageChops, ImageColor, ImageFilter
from torch import Tensor

from mfpo.probe.cases import Case
from mfpo.probe.words import Word, as_seen
from mfpo.records import answer_text
from mfpo.report.palette import BLUE, ORANGE
from mfpo.report.samples import picture

# Pixels of a side of a drawing, at least.
_DRAWN_SIDE = 336


@dataclass(frozen=True)
class Drawing:
    """What a model sees with the outline of the word's mask, alone and under the word's attention."""

    model: str
    answer: str
    image: Image.Image
    heat: Image.Image


def draw(name: str, processor: Any, case: Case, word: Word, heat: Tensor) -> Drawing:
    """What the model sees; `heat`, (side, side), is drawn relative to its greatest value."""
    mask = Image.fromarray(case.masks[word.text] * np.uint8(255)).convert("RGB")
    pixels, covered = as_seen(processor, case.image), as_seen(processor, mask)[0] > 0.5
    times = max(1, -(-_DRAWN_SIDE // pixels.shape[-1]))
    size = (pixels.shape[2] * times, pixels.shape[1] * times)
    image = Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy()).resize(size, Image.Resampling.NEAREST)
    alpha = Image.fromarray((heat / heat.max() * 230).byte().numpy()).resize(size, Image.Resampling.NEAREST)
    heated = image.convert("L").convert("RGB")
    heated.paste(ImageColor.getrgb(ORANGE), mask=alpha)
    inside = Image.fromarray(covered.byte().numpy() * np.uint8(255)).resize(size, Image.Resampling.NEAREST)
    outline = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(5)), inside)
    for drawn in (image, heated):
        drawn.paste(ImageColor.getrgb(BLUE), mask=outline)
    return Drawing(name, answer_text(case.chosen), image, heated)


def show(drawings: Sequence[Drawing]) -> Markup:
    """The image of a record, the attention of each model on it, and the answer, as HTML."""
    shown = [("image", drawings[0].image), *((drawing.model, drawing.heat) for drawing in drawings)]
    pictures = [(name, picture(image)) for name, image in shown]
    views = Markup("").join(
        Markup('<figure><img src="{}" width="{}" height="{}" alt="{}"><figcaption>{}</figcaption></figure>').format(
            encoded.uri, encoded.width, encoded.height, f"{name}, with the outline of the object", name
        )
        for name, encoded in pictures
    )
    return Markup('<div class="views">{}</div><p class="note">{}</p>').format(views, drawings[0].answer)
