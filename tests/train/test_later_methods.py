"""The objectives after the paper, each record by its plain formula from log p of policy and reference."""

import math
from functools import partial

import pytest
import torch

from mfpo.logprobs.cells import CELLS
from mfpo.train.methods.chip import chip, weigh_segments
from mfpo.train.methods.counterfactual import counterfactual
from mfpo.train.methods.mfpo import mfpo
from mfpo.train.methods.s_vco import s_vco
from mfpo.train.methods.symmpo import symmpo
from mfpo.train.objectives import Answer, Answers, LogRatios, total

ROWS = 6


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


@pytest.fixture
def logps() -> dict[str, dict[str, torch.Tensor]]:
    """log p of every cell under policy and reference, (rows,)."""
    torch.manual_seed(0)
    draw = partial(torch.rand, ROWS, dtype=torch.float64)
    return {model: {name: -30 * draw() for name in CELLS} for model in ("policy", "reference")}


@pytest.fixture
def ratios(logps) -> LogRatios:
    return LogRatios(**{name: logps["policy"][name] - logps["reference"][name] for name in CELLS})


def row_of(logps: dict, row: int) -> tuple[dict[str, float], dict[str, float]]:
    return tuple({name: float(values[row]) for name, values in own.items()} for own in logps.values())


def test_symmpo(logps, ratios):
    losses = symmpo(ratios, beta=0.2, symmetric_weight=0.4, consistency_weight=0.01)
    for row in range(ROWS):
        pi, ref = row_of(logps, row)
        text = (pi["chosen"] - pi["rejected"]) - (ref["chosen"] - ref["rejected"])
        first = (pi["chosen"] - pi["counter"]) - (ref["chosen"] - ref["counter"])
        other, own = "rejected_image", "counter_rejected_image"
        second = (pi[own] - pi[other]) - (ref[own] - ref[other])
        expected = {
            "text": -log_sigmoid(0.2 * text),
            "symmetric": 0.4 * (-log_sigmoid(0.2 * first) - log_sigmoid(0.2 * second)),
            "margin": -log_sigmoid(0.2 * (pi["chosen"] - ref["chosen"])) - log_sigmoid(0.2 * (pi[own] - ref[own])),
            "consistency": 0.01 * (first - second) ** 2,
        }
        assert {name: loss[row].item() for name, loss in losses.items()} == pytest.approx(expected, abs=1e-9)


def test_s_vco(logps, ratios):
    losses = s_vco(ratios, beta=0.2)
    for row in range(ROWS):
        pi, ref = row_of(logps, row)

        def prefers(better: str, worse: str, pi=pi, ref=ref) -> float:
            return -log_sigmoid(0.2 * ((pi[better] - pi[worse]) - (ref[better] - ref[worse])))

        attend = prefers("chosen", "chosen_blind") + prefers("counter_rejected_image", "counter_blind")
        reject = prefers("chosen_blind", "rejected_image") + prefers("counter_blind", "counter")
        assert losses["attend"][row].item() == pytest.approx(attend, abs=1e-9)
        assert losses["reject"][row].item() == pytest.approx(reject, abs=1e-9)


def test_counterfactual_is_text_and_margin_on_either_image(ratios):
    losses = counterfactual(ratios, beta=0.2, eta=0.3)
    for row in range(ROWS):
        r = {name: 0.2 * float(value[row]) for name, value in ratios.there().items()}
        expected = {
            "text": -log_sigmoid(r["chosen"] - r["rejected"]),
            "margin": -log_sigmoid(r["chosen"] - 0.3),
            "counter_text": -log_sigmoid(r["counter_rejected_image"] - r["rejected_image"]),
            "counter_margin": -log_sigmoid(r["counter_rejected_image"] - 0.3),
        }
        assert {name: loss[row].item() for name, loss in losses.items()} == pytest.approx(expected, abs=1e-9)


def test_bounded_image_losses_of_mfpo(ratios):
    joint, hinge = (mfpo(ratios, beta=0.2, image_loss=kind, hinge_margin=6.0) for kind in ("joint", "hinge"))
    plain = mfpo(ratios, beta=0.2)
    assert list(joint) == ["text", "margin"]
    inside = 0
    for row in range(ROWS):
        chosen, rejected, image = (float(r[row]) for r in (ratios.chosen, ratios.rejected, ratios.rejected_image))
        both = (chosen - rejected) + (chosen - image)
        assert joint["text"][row].item() == pytest.approx(-log_sigmoid(0.2 * both), abs=1e-9)
        assert hinge["image"][row].item() == pytest.approx(0.2 * max(0.0, 6.0 - (chosen - image)), abs=1e-9)
        inside += hinge["image"][row].item() > 0
    assert 0 < inside < ROWS, "both sides of the hinge"
    assert torch.equal(hinge["text"], plain["text"])
    assert torch.equal(hinge["margin"], plain["margin"])


def answers(seed: int, *, rows: int = ROWS, vocabulary: int = 7, tokens: int = 4) -> Answers:
    """Random logits of y_w, y_l and (y_w, m'); the last token of every second answer is padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    mask[::2, -1] = False
    ids = torch.zeros(rows, tokens, dtype=torch.int64)
    logits = [2 * torch.randn(rows, tokens, vocabulary, generator=generator, dtype=torch.float64) for _ in range(3)]
    return Answers(*(Answer(values, ids, mask) for values in logits))


def softmax(logits: torch.Tensor) -> list[float]:
    powers = [math.exp(value) for value in logits.tolist()]
    return [power / sum(powers) for power in powers]


def test_chip_is_one_sigmoid_over_margins_and_divergences(logps, ratios):
    policy, reference = answers(1), answers(2)
    losses = chip(ratios, policy, reference, beta=0.2, kl_weight=0.3)["joint"]

    def divergence(cell: str, row: int) -> float:
        found = 0.0
        for place in range(4 - (row % 2 == 0)):
            p, q = (softmax(getattr(model, cell).logits[row, place]) for model in (reference, policy))
            found += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        return found

    for row in range(ROWS):
        pi, ref = row_of(logps, row)
        margin = (pi["chosen"] - pi["rejected"]) - (ref["chosen"] - ref["rejected"])
        margin += pi["chosen"] - ref["chosen"]
        margin -= pi["rejected_image"] - ref["rejected_image"]
        margin -= 0.3 * (divergence("rejected", row) - divergence("chosen", row))
        assert losses[row].item() == pytest.approx(-log_sigmoid(0.2 * margin), abs=1e-9)


def test_chip_stops_the_gradient_of_the_chosen_answers_divergence(ratios):
    policy = answers(1)
    for answer in (policy.chosen, policy.rejected):
        answer.logits.requires_grad_()
    chip(ratios, policy, answers(2))["joint"].sum().backward()
    assert policy.chosen.logits.grad is None
    assert policy.rejected.logits.grad.abs().sum() > 0


def test_weights_of_chip_are_those_of_changed_tokens_and_no_mean():
    weights = weigh_segments(torch.tensor([1, 2, 3, 4]), (torch.tensor([5, 6, 7, 8, 9]), torch.tensor([5, 1, 7, 8, 9])))
    assert [one.tolist() for one in weights] == [[1.0, 4.0, 1.0, 1.0, 1.0]] * 2


def test_gradients_are_those_of_finite_differences(ratios):
    def by_position(function):
        return lambda *values: total(function(LogRatios(**dict(zip(CELLS, values, strict=True)))))

    inputs = [value.clone().requires_grad_() for value in ratios.there().values()]
    policy, reference = answers(1), answers(2)
    for function in (
        symmpo,
        s_vco,
        counterfactual,
        partial(mfpo, image_loss="joint"),
        partial(mfpo, image_loss="hinge"),
        partial(chip, policy=policy, reference=reference),
    ):
        assert torch.autograd.gradcheck(by_position(function), inputs, atol=1e-6, rtol=1e-6)
        gradients = torch.autograd.grad(by_position(function)(*inputs).sum(), inputs, allow_unused=True)
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
