"""Answers of each family: a batch's are those of one question at a time, by each decoder."""

import pytest
import torch
from transformers import TopKLogitsWarper

from fixtures.families import LIMITS, picture
from mfpo.answer.greedy import greedy
from mfpo.answer.opera import opera
from mfpo.answer.vcd import vcd
from mfpo.errors import MfpoError
from mfpo.processors import encode_questions

IMAGES = [picture(number, width=32 + 8 * (number % 3), height=32 + 24 * (number % 2)) for number in range(6)]
QUESTIONS = [
    {"question_id": str(number), "text": "What dog " * (1 + number % 3) + "is it?"} for number in range(len(IMAGES))
]
# Every eighth token ends an answer, so that rows end one after the other.
ENDS = [2, *range(60, 310, 8)]


@pytest.fixture
def asked(any_family, monkeypatch):
    """A model and its processor, with a template and ends of answers."""
    model, processor = any_family.model, any_family.processor
    template = (
        "<s>{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        + processor.image_token
        + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %} "
    )
    monkeypatch.setattr(processor, "chat_template", template)
    monkeypatch.setattr(model.generation_config, "eos_token_id", ENDS)
    monkeypatch.setattr(model.generation_config, "pad_token_id", 0)
    return any_family.name, model, processor


def plain(asked, number, **options):
    _, model, processor = asked
    inputs = encode_questions(processor, [QUESTIONS[number]["text"]], [IMAGES[number]])
    output = model.generate(**inputs, do_sample=False, **options)
    return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]


@torch.inference_mode()
def test_greedy_answers_do_not_depend_on_the_batch(asked):
    alone = [plain(asked, number, max_new_tokens=6) for number in range(len(QUESTIONS))]
    assert greedy(*asked[1:], QUESTIONS, IMAGES, 6) == alone
    assert greedy(*asked[1:], QUESTIONS[:3], IMAGES[:3], 6) == alone[:3]
    assert len(set(alone)) > 1


@torch.inference_mode()
def test_contrasted_answers_do_not_depend_on_the_batch(asked):
    name, *model = asked

    def answers(start, end):
        return vcd(*model, QUESTIONS[start:end], IMAGES[start:end], 5, cd_alpha=2, sample=False)

    if reason := LIMITS.get(name, {}).get("`decode=vcd`"):
        with pytest.raises(MfpoError, match=reason):
            answers(1, 2)
    else:
        alone = [answers(number, number + 1)[0] for number in range(3)]
        assert answers(0, 3) == alone
        assert alone != greedy(*model, QUESTIONS[:3], IMAGES[:3], 5)


@torch.inference_mode()
def test_opera_without_its_penalty_is_beam_search(asked):
    beams = {"num_beams": 2, "logits_processor": [TopKLogitsWarper(64)], "renormalize_logits": True}
    settings = {"num_beams": 2, "num_attn_candidates": 64, "penalty_weight": 0.0, "threshold": 10_000}
    name, model, processor = asked
    attention = model.config._attn_implementation
    try:
        if reason := LIMITS.get(name, {}).get("`decode=opera`"):
            with pytest.raises(MfpoError, match=reason):
                opera(model, processor, QUESTIONS[1:2], IMAGES[1:2], 5, **settings)
        else:
            found = opera(model, processor, QUESTIONS[1:2], IMAGES[1:2], 5, **settings)
            assert found == [plain(asked, 1, max_new_tokens=5, **beams)]
    finally:
        model.set_attn_implementation(attention)
