"""VCD against slow formulas, and answers that do not depend on their batch."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from mfpo.answer.greedy import greedy
from mfpo.answer.settings import AnswerSettings
from mfpo.answer.vcd import Contrast, add_noise, contrast, rows_of_pixels, vcd
from mfpo.build.noise import alpha_bar
from mfpo.build.steps import generator
from mfpo.errors import MfpoError, SettingError
from mfpo.processors import encode_questions

KINDS = ["llava", "llava_next", "qwen2_5_vl"]


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_contrast_is_the_formula_of_probabilities(beta):
    """Equations 3 and 4 as the paper writes them: p(y|v)^(1 + alpha) / p(y|v')^alpha on V_head, 0 elsewhere."""
    random = torch.Generator().manual_seed(0)
    clean, noised = (3 * torch.randn(4, 50, generator=random, dtype=torch.float64) for _ in range(2))
    found = contrast(clean, noised, alpha=0.7, beta=beta).softmax(dim=-1)
    for row in range(4):
        p = [math.exp(x) for x in clean[row].tolist()]
        q = [math.exp(x) for x in noised[row].tolist()]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        scores = [a**1.7 / b**0.7 if a >= beta * max(p) * (1 - 1e-9) else 0.0 for a, b in zip(p, q, strict=True)]
        expected = torch.tensor([score / sum(scores) for score in scores], dtype=torch.float64)
        torch.testing.assert_close(found[row], expected, rtol=1e-6, atol=1e-9)
    kept = (found > 0).sum(dim=1)
    assert {0.0: (kept == 50).all(), 1.0: (kept == 1).all()}.get(beta, ((kept > 1) & (kept < 50)).any())


def test_noise_has_the_schedules_mean_and_variance(make, images, rows):
    _, processor = make("llava")
    batch = dict(encode_questions(processor, ["What?"], images[:1]))
    rngs = [np.random.default_rng(number) for number in range(400)]
    many = {"pixel_values": batch["pixel_values"].repeat(400, 1, 1, 1)}
    noised = add_noise(many, rngs, [1] * 400, step=500)
    kept = alpha_bar(500)
    noise = (noised - math.sqrt(kept) * many["pixel_values"]) / math.sqrt(1 - kept)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.var()) == pytest.approx(1, abs=0.01)
    assert float((noise[0] * noise[1]).mean()) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_does_not_depend_on_the_batch(make, images, rows, kind):
    """Each row of a batch, whose images have different numbers of tiles or patches, against the row alone."""
    _, processor = make(kind)
    frames = getattr(processor.image_processor, "temporal_patch_size", 1)
    asked = [{"text": "What?"}] * 5
    together = dict(encode_questions(processor, ["What?"] * 5, images))
    sizes = rows_of_pixels(processor, together, asked, images)
    noised = add_noise(together, [generator(0, str(number)) for number in range(5)], sizes, step=500, frames=frames)
    assert (noised != together["pixel_values"]).float().mean() > 0.6
    start = 0
    for number, image in enumerate(images):
        alone = dict(encode_questions(processor, ["What?"], [image]))
        own = [len(alone["pixel_values"])]
        expected = add_noise(alone, [generator(0, str(number))], own, step=500, frames=frames)
        if kind == "llava_next":
            torch.testing.assert_close(noised[number, : expected.shape[1]], expected[0])
            assert not noised[number, expected.shape[1] :].any(), "padded tiles should stay 0"
        else:
            torch.testing.assert_close(noised[start : start + len(expected)], expected)
            start += len(expected)


def test_copies_of_a_frame_have_the_same_noise(make, images):
    """Qwen lays an image twice, as a film of two frames: (channel, frame, height, width) in each patch."""
    _, processor = make("qwen2_5_vl")
    batch = dict(encode_questions(processor, ["What?"], images[:1]))
    noised = add_noise(batch, [generator(0, "a")], [len(batch["pixel_values"])], step=500, frames=2)
    for pixels in (batch["pixel_values"], noised):
        first, second = pixels.unflatten(1, (3, 2, -1)).unbind(dim=2)
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_pixels_of_unclear_owner_are_refused(make, images):
    _, processor = make("llava")
    batch = dict(encode_questions(processor, ["What?"] * 2, images[:2]))
    with pytest.raises(MfpoError, match="which of 2 rows of pixels belong to which of 1 questions"):
        rows_of_pixels(processor, batch, [{"text": "What?"}], images[:1])


def test_a_second_kind_of_pixels_is_refused(make, images):
    """DeepSeek-VL's hybrid sees an image in two resolutions."""
    _, processor = make("llava")
    batch = dict(encode_questions(processor, ["What?"], images[:1]))
    batch["high_res_pixel_values"] = batch["pixel_values"]
    with pytest.raises(MfpoError, match="cannot add noise to pixel_values, high_res_pixel_values"):
        rows_of_pixels(processor, batch, [{"text": "What?"}], images[:1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sample", [True, False])
def test_a_batch_gives_the_answers_of_two_plain_streams(make, images, rows, kind, sample):
    """Row by row, without a cache: the model on the image, the model on the noised image, the formula, the draw."""
    model, processor = make(kind)
    frames = getattr(processor.image_processor, "temporal_patch_size", 1)

    @torch.no_grad()
    def plain(row, image):
        noise, draws = generator(4, row["question_id"]).spawn(2)
        clean = dict(encode_questions(processor, [row["text"]], [image]))
        start = clean["input_ids"].shape[1]
        noised = clean | {
            "pixel_values": add_noise(clean, [noise], [len(clean["pixel_values"])], step=500, frames=frames)
        }
        for _ in range(10):
            scores = 1.6 * next_logits(clean) - 0.6 * next_logits(noised)
            p = next_logits(clean).softmax(dim=-1)
            scores[p < 0.05 * p.max()] = -math.inf
            if sample:
                scores += torch.from_numpy(draws.gumbel(size=len(scores)))
            token = scores.argmax()
            for stream in (clean, noised):
                stream["input_ids"] = torch.cat([stream["input_ids"], token.view(1, 1)], dim=1)
                stream["attention_mask"] = torch.ones_like(stream["input_ids"])
                if "mm_token_type_ids" in stream:
                    types = stream["mm_token_type_ids"]
                    stream["mm_token_type_ids"] = torch.cat([types, types.new_zeros(1, 1)], dim=1)
            if token == processor.tokenizer.eos_token_id:
                break
        return processor.decode(clean["input_ids"][0, start:], skip_special_tokens=True)

    def next_logits(stream):
        return model(**stream, use_cache=False).logits[0, -1]

    found = vcd(model, processor, rows, images, 10, cd_alpha=0.6, cd_beta=0.05, sample=sample, seed=4)
    assert found == [plain(row, image) for row, image in zip(rows, images, strict=True)]
    assert len(set(found)) == 5


def test_without_contrast_it_is_greedy_decoding(make, images, rows):
    model, processor = make("llava")
    expected = greedy(model, processor, rows, images, 12)
    assert vcd(model, processor, rows, images, 12, cd_alpha=0, cd_beta=1e-9, sample=False) == expected
    assert vcd(model, processor, rows, images, 12, cd_alpha=2, sample=False) != expected


def test_tokens_are_drawn_from_the_scores_distribution():
    """4,000 rows of the same logits, by a chi-squared test; both halves of the batch get the same token."""
    random = torch.Generator().manual_seed(0)
    logits, noised = torch.randn(2, 12, generator=random)
    draw = Contrast(1.0, 0.2, [generator(0, str(number)) for number in range(4000)])
    scores = draw(torch.zeros(8000, 1), torch.cat([logits.repeat(4000, 1), noised.repeat(4000, 1)]))
    tokens, again = scores.argmax(dim=1).chunk(2)
    assert (tokens == again).all()
    shares = contrast(logits[None], noised[None], alpha=1.0, beta=0.2)[0].softmax(dim=-1)
    counts = torch.bincount(tokens, minlength=12)
    possible = shares > 0
    assert 3 < possible.sum() < 12
    assert not counts[~possible].any()
    expected = shares[possible].double()
    assert chisquare(counts[possible], 4000 * expected / expected.sum()).pvalue > 0.001


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cd_alpha": -1}, "cd_alpha"),
        ({"cd_beta": 1.5}, "from 0 to 1"),
        ({"noise_step": 1000}, "999"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(SettingError, match=message):
        AnswerSettings(decode="vcd", **wrong)
