"""Objectives against the plain formula, hand numbers, and TRL's own loss."""

import copy
import math

import pytest
import torch
from trl import DPOConfig, DPOTrainer

from mfpo.dataset import read_dataset
from mfpo.logprobs.sequences import Encoded, collate, sequence_logps
from mfpo.models import load_model
from mfpo.processors import load_processor
from mfpo.train.methods.dpo import dpo
from mfpo.train.methods.mdpo import mdpo
from mfpo.train.methods.mfpo import mfpo
from mfpo.train.objectives import OBJECTIVES, LogRatios, total


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


@pytest.fixture
def ratios() -> LogRatios:
    torch.manual_seed(0)
    return LogRatios(*(5 * torch.randn(3, 20, dtype=torch.float64)))


def test_mfpo_is_the_plain_formula(ratios):
    terms = mfpo(ratios, beta=0.3, eta=0.7)
    losses = total(terms, text=0.5, image=2.0, margin=3.0)
    for row in range(20):
        chosen, rejected, image = (0.3 * float(r[row]) for r in (ratios.chosen, ratios.rejected, ratios.rejected_image))
        text, image, margin = -log_sigmoid(chosen - rejected), -log_sigmoid(chosen - image), -log_sigmoid(chosen - 0.7)
        assert terms["text"][row].item() == pytest.approx(text, abs=1e-9)
        assert terms["image"][row].item() == pytest.approx(image, abs=1e-9)
        assert terms["margin"][row].item() == pytest.approx(margin, abs=1e-9)
        assert losses[row].item() == pytest.approx(0.5 * text + 2 * image + 3 * margin, abs=1e-9)


def test_equal_models_without_margin_give_log_2_in_each_term():
    zeros = torch.zeros(4, dtype=torch.float64)
    terms = mfpo(LogRatios(zeros, zeros, zeros), eta=0.0)
    for term in (terms["text"], terms["image"], terms["margin"]):
        torch.testing.assert_close(term, torch.full_like(zeros, math.log(2)))
    torch.testing.assert_close(total(terms), torch.full_like(zeros, 3 * math.log(2)))


def test_dpo_has_one_term(ratios):
    terms = dpo(ratios, beta=0.1)
    assert terms.keys() == {"text"}
    torch.testing.assert_close(total(terms, image=9.0, margin=9.0), terms["text"])
    torch.testing.assert_close(terms["text"], mfpo(ratios, beta=0.1)["text"])


def test_mdpo_has_three_terms(ratios):
    terms = mdpo(ratios, beta=0.2)
    for row, (chosen, rejected, crop) in enumerate(
        zip(*(one.tolist() for one in ratios.there().values()), strict=True)
    ):
        gaps = {"text": chosen - rejected, "image": chosen - crop, "margin": chosen}
        for name, gap in gaps.items():
            assert terms[name][row].item() == pytest.approx(math.log1p(math.exp(-0.2 * gap)), abs=1e-9)


def test_gradients_are_those_of_finite_differences(ratios):
    inputs = [r.clone().requires_grad_() for r in (ratios.chosen, ratios.rejected, ratios.rejected_image)]
    assert torch.autograd.gradcheck(lambda *r: total(mfpo(LogRatios(*r), beta=0.3, eta=0.5)), inputs)


def test_image_term_without_rejected_image_is_an_error(ratios):
    with pytest.raises(ValueError, match="needs rejected_image of LogRatios"):
        mfpo(LogRatios(ratios.chosen, ratios.rejected))


def test_the_registry_knows_what_each_method_takes():
    methods = {name: OBJECTIVES[name] for name in list(OBJECTIVES)[:13]}  # other tests may add some
    assert {name: (set(m.inputs), m.corruption) for name, m in methods.items() if m.needs_rejected_images} == {
        "mdpo": ({"ratios"}, "crop"),
        "mfpo": ({"ratios"}, None),
        "povid": ({"ratios", "policy", "reference"}, "global"),
        "chip": ({"ratios", "policy", "reference"}, None),
        **dict.fromkeys(("symmpo", "s-vco", "counterfactual"), ({"ratios"}, None)),
    }
    assert {name for name, method in methods.items() if method.is_staged} == {"mfpo"}
    assert set(methods["hacl"].inputs) == {"chosen_nll", "features"}


class Trl:
    """TRL's trainer, a policy and a reference that differs from it."""

    def __init__(self, path, folder):
        self.path, self.folder = path, folder
        self.model = load_model(path)
        self.reference = copy.deepcopy(self.model)
        torch.manual_seed(1)
        with torch.no_grad():
            for weights in self.model.model.language_model.parameters():
                weights.add_(0.02 * torch.randn_like(weights))

    def open(self, dataset):
        """A trainer and a batch of its own: the rows of y_w, then those of y_l."""
        trainer = DPOTrainer(
            model=self.model,
            ref_model=self.reference,
            processing_class=load_processor(self.path),
            train_dataset=dataset.select_columns(["images", "prompt", "chosen", "rejected"]),
            args=DPOConfig(
                output_dir=str(self.folder),
                per_device_train_batch_size=8,
                beta=0.1,
                use_cpu=True,
                bf16=False,
                report_to=[],
            ),
        )
        return trainer, next(iter(trainer.get_train_dataloader()))

    def ratios(self, batch):
        """Our log-ratios of a batch's two halves."""
        names = ("input_ids", "attention_mask", "completion_mask", "pixel_values")
        rows = [
            Encoded(ids[mask > answer], (ids[answer == 1],), {"pixel_values": pixels[None]}, cut=(0,))
            for ids, mask, answer, pixels in zip(*(batch[name] for name in names), strict=True)
        ]
        inputs = collate(rows, pad_id=0)
        with torch.no_grad():
            return (sequence_logps(self.model, inputs) - sequence_logps(self.reference, inputs)).chunk(2)


@pytest.fixture
def trl(tiny_llava, tmp_path) -> Trl:
    return Trl(tiny_llava, tmp_path)


def test_dpo_is_trl_sigmoid_loss(trl, preference_data):
    trainer, batch = trl.open(read_dataset(preference_data))
    with torch.no_grad():
        theirs = trainer.compute_loss(trl.model, dict(batch))
    ours = total(dpo(LogRatios(*trl.ratios(batch)), beta=0.1)).mean()
    assert abs(ours - math.log(2)) > 0.01, "the policy should differ from the reference"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_text_and_image_term_of_mdpo_are_trl_sigmoid_losses(trl, preference_data):
    """TRL has no rejected images, so the image term is its loss on a batch in which these are what is rejected."""
    dataset = read_dataset(preference_data)
    trainer, batch = trl.open(dataset)
    noised = dataset.remove_columns("images").rename_column("rejected_images", "images")
    _, other = trl.open(noised)
    count = len(batch["input_ids"]) // 2
    assert torch.equal(batch["input_ids"], other["input_ids"]), "the two batches should be of the same records"
    images = {name: torch.cat([own[:count], other[name][:count]]) for name, own in batch.items()}
    with torch.no_grad():
        text, image = (trainer.compute_loss(trl.model, dict(one)) for one in (batch, images))
    chosen, rejected = trl.ratios(batch)
    terms = mdpo(LogRatios(chosen, rejected, trl.ratios(images)[1]), beta=0.1)
    torch.testing.assert_close(terms["text"].mean(), text, rtol=0, atol=1e-6)
    torch.testing.assert_close(terms["image"].mean(), image, rtol=0, atol=1e-6)
    assert abs(text - image) > 1e-3, "the two terms should differ"
