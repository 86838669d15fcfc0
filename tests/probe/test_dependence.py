import pytest
import torch

from mfpo.logprobs.sequences import encode
from mfpo.models import load_model, load_processor
from mfpo.probe.dependence import image_dependence
from mfpo.records import read_dataset


def test_image_dependence_is_the_mean_drop_of_the_chosen_answer(tiny_llava, preference_data):
    model, processor = load_model(tiny_llava), load_processor(tiny_llava)
    dataset = read_dataset(preference_data)
    drops = []
    for record in dataset:
        logps = []
        for images in (record["images"], record["rejected_images"]):
            row = encode(processor, images, record["prompt"], [record["chosen"]], max_length=999)
            ids = torch.cat([row.prompt_ids, *row.answers])
            with torch.no_grad():
                table = model(input_ids=ids[None], **row.features).logits[0].log_softmax(dim=-1)
            positions = range(len(row.prompt_ids), len(ids))
            logps.append(sum(float(table[i - 1, ids[i]]) for i in positions))
        drops.append(logps[0] - logps[1])
    expected = sum(drops) / len(drops)
    assert abs(expected) > 1e-3, "the images should make a difference"
    assert image_dependence(model, processor, dataset, batch_size=4) == pytest.approx(expected, abs=1e-4)


def test_image_dependence_is_0_when_nothing_was_destroyed(tiny_llava, preference_data):
    same = read_dataset(preference_data).map(lambda record: {"rejected_images": record["images"]})
    dependence = image_dependence(load_model(tiny_llava), load_processor(tiny_llava), same)
    # Not exactly 0: the two halves of a batch may be summed in another order.
    assert dependence == pytest.approx(0, abs=1e-4)
