"""Whether the terms of MFPO's loss pull the weights the same way."""

from typing import Any

import datasets
import torch
import torch.nn.functional as F
from torch import Tensor

from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.prefix import shares_prefix
from mfpo.logprobs.sequences import sequence_logps
from mfpo.probe.dependence import MAX_LENGTH
from mfpo.train.methods.mfpo import mfpo
from mfpo.train.objectives import LogRatios


def image_pull(
    model: Any, processor: Any, dataset: datasets.Dataset, reference: Tensor, *, batch_size: int = 8
) -> Tensor:
    """How the image term of MFPO's loss pulls the weights, batch by batch as in training, (batches, 3).

    The norm of its gradient by that of the text term's, its cosine with the text term's gradient, and with the margin
    term's, over all weights of `model` that require gradients. `reference` are the reference's log p as `pair_logps`
    gives them, (records, 3). Gradients are held whole in memory, three at a time.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    pairs = Pairs(dataset, processor, cells=TEXT_AND_IMAGE, max_length=MAX_LENGTH)
    pulls = []
    for start in range(0, len(pairs), batch_size):
        rows = range(start, min(start + batch_size, len(pairs)))
        batch = pairs.collate([pairs[row] for row in rows], shared=shares_prefix(model))
        before = reference[batch.pop("rows")].T.to(model.device)
        losses = mfpo(LogRatios(*(sequence_logps(model, batch).view(-1, 3).T - before)))
        text, image, margin = (_gradient(losses[term].mean(), weights) for term in ("text", "image", "margin"))
        cosines = (F.cosine_similarity(image, other, dim=0) for other in (text, margin))
        pulls.append(torch.stack([image.norm() / text.norm(), *cosines]))
    return torch.stack(pulls).cpu()


def _gradient(loss: Tensor, weights: list[Tensor]) -> Tensor:
    parts = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])
