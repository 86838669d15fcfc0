"""Hallucination-augmented contrastive learning (HACL)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mfpo.train.objectives import Losses, objective

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Features:
    """The last state, at the end token, of the images alone, of y_w alone and of y_l alone, each (batch, width)."""

    images: Tensor
    chosen: Tensor
    rejected: Tensor


@objective("hacl", terms=("lm", "contrast"))
def hacl(
    chosen_nll: Tensor,
    features: Features,
    *,
    temperature: float = 0.07,
    contrast_weight: float = 1.0,
    all_hallucinated: bool = False,
) -> Losses:
    """A caption loss and a contrast of representations with hallucinated captions as hard negatives (Jiang et al.
    2024, equations 2 to 4), each (batch,).

    An image must be nearer to its own caption y_w than to the other captions of the batch and to its hallucinated one,
    y_l, or with `all_hallucinated`, as released, to those of the whole batch; a caption nearer to its image than to
    other images. The states are compared as they are: the released code has two projection layers, which it leaves at
    their random start. The paper's queue of captions from earlier batches is left out.
    """
    import torch
    import torch.nn.functional as F

    images, chosen, rejected = (F.normalize(part, dim=-1) for part in vars(features).values())
    own = torch.arange(len(images), device=images.device)
    hallucinated = images @ rejected.T if all_hallucinated else (images * rejected).sum(-1, keepdim=True)
    to_texts = torch.cat([images @ chosen.T, hallucinated], dim=1) / temperature
    to_images = chosen @ images.T / temperature
    contrast = F.cross_entropy(to_texts, own, reduction="none") + F.cross_entropy(to_images, own, reduction="none")
    return {"lm": chosen_nll, "contrast": contrast_weight * contrast / 2}
