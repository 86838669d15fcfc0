import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import binary_dilation

from mfpo.dataset import read_dataset
from mfpo.logprobs.sequences import encode
from mfpo.masks import decode_mask, encode_mask
from mfpo.models import load_model
from mfpo.probe.dependence import image_dependence
from mfpo.probe.inpainting import inpaint
from mfpo.processors import load_processor
from mfpo.records import Region


def test_image_dependence_is_the_mean_drop_of_the_chosen_answer(tiny_llava, preference_data):
    model, processor = load_model(tiny_llava), load_processor(tiny_llava)
    mask = np.zeros((40, 48), dtype=bool)
    mask[5:20, 10:30] = True
    region = Region(keyword="dog", score=1.0, mask=encode_mask(mask), image=0)
    # Every other record has no region, as in a fallback.
    dataset = read_dataset(preference_data).map(lambda _, row: {"regions": [region] * (row % 2)}, with_indices=True)
    drops = []
    for record in dataset:
        logps = []
        for images in (record["images"], record["rejected_images"], without_regions(record)):
            row = encode(processor, images, record["prompt"], [record["chosen"]], max_length=999)
            ids = torch.cat([row.prompt_ids, *row.answers])
            with torch.no_grad():
                table = model(input_ids=ids[None], **row.features).logits[0].log_softmax(dim=-1)
            positions = range(len(row.prompt_ids), len(ids))
            logps.append(sum(float(table[i - 1, ids[i]]) for i in positions))
        drops.append((logps[0] - logps[1], logps[0] - logps[2]))
    noise, inpainted = np.mean(drops, axis=0)
    assert min(abs(noise), abs(inpainted), abs(noise - inpainted)) > 1e-3, "the images should make a difference"
    twice = datasets.concatenate_datasets([dataset, dataset])  # more than a batch, with the same mean
    found = image_dependence(model, processor, twice)
    expected = {"image_dependence": noise, "image_dependence_inpainted": inpainted}
    assert found == pytest.approx(expected, abs=1e-4)


def without_regions(record):
    """The image with its regions and one pixel around them inpainted; grey all over where it has none."""
    pixels = np.asarray(record["images"][0])
    if not record["regions"]:
        return [Image.fromarray(np.full_like(pixels, 128))]
    mask = np.any([decode_mask(region["mask"]) for region in record["regions"]], axis=0)
    return [Image.fromarray(inpaint(pixels, binary_dilation(mask, np.ones((3, 3)))))]


def test_image_dependence_is_0_when_nothing_was_destroyed(tiny_llava, preference_data):
    same = read_dataset(preference_data).map(lambda record: {"rejected_images": record["images"]})
    dependence = image_dependence(load_model(tiny_llava), load_processor(tiny_llava), same)
    # Not exactly 0: the two halves of a batch may be summed in another order.
    assert dependence["image_dependence"] == pytest.approx(0, abs=1e-4)
