"""The pull of the image term against gradients by `backward` of the loss written out."""

import pytest
import torch

from mfpo.dataset import read_dataset
from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.sequences import sequence_logps
from mfpo.models import load_model
from mfpo.picturebook import WEIGHTS
from mfpo.probe.dependence import pair_logps
from mfpo.probe.gradients import image_pull
from mfpo.processors import load_processor

BETA = 0.1


def gradient_by_hand(model, pairs, rows, reference, term):
    """Record by record, each sequence in a row of its own."""
    model.zero_grad()
    for row in rows:
        batch = pairs.collate([pairs[row]])
        batch.pop("rows")
        chosen, rejected, rejected_image = BETA * (sequence_logps(model, batch) - reference[row])
        margin = {"text": chosen - rejected, "image": chosen - rejected_image, "margin": chosen}[term]
        ((1 + (-margin).exp()).log() / len(rows)).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def test_pull_of_each_batch_is_that_of_its_gradients(preference_data):
    model, processor = load_model(WEIGHTS), load_processor(WEIGHTS)
    model.get_encoder(modality="image").requires_grad_(False)
    dataset = read_dataset(preference_data).select(range(6))
    reference = pair_logps(model, processor, dataset)
    with torch.no_grad():
        for weight in model.get_output_embeddings().parameters():
            weight.mul_(1.1)  # so that the policy is not its reference
    pulls = image_pull(model, processor, dataset, reference, batch_size=4)
    assert pulls.shape == (2, 3)
    pairs = Pairs(dataset, processor, cells=TEXT_AND_IMAGE, max_length=2048)
    for rows, pull in zip((range(4), range(4, 6)), pulls, strict=True):
        text, image, margin = (
            gradient_by_hand(model, pairs, rows, reference, term) for term in ("text", "image", "margin")
        )
        cosines = [image @ other / image.norm() / other.norm() for other in (text, margin)]
        expected = [image.norm() / text.norm(), *cosines]
        assert pull.tolist() == pytest.approx([one.item() for one in expected], abs=1e-4)
