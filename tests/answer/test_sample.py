"""Sampled answers: one prompt for all of a question's, each from its own random numbers."""

import numpy as np
import pytest
import torch

from mfpo.answer.greedy import greedy
from mfpo.answer.sample import Draw, sample
from mfpo.build.steps import generator

HOW = {"samples": 3, "temperature": 1.0, "max_new_tokens": 12, "seed": 0}


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "qwen3_5"])
def test_order_and_batch_change_nothing_and_the_first_is_greedy(make, rows, images, name, monkeypatch):
    model, processor = make(name)
    # Many tokens end an answer, so that rows end one after the other.
    monkeypatch.setattr(model.generation_config, "eos_token_id", [2, *range(4, len(processor.tokenizer), 8)])
    together = sample(model, processor, rows, images, **HOW)
    alone = [
        sample(model, processor, [row], [image], **HOW)[0] for row, image in reversed([*zip(rows, images, strict=True)])
    ]
    assert together == alone[::-1]
    with torch.inference_mode():
        first = [text.strip() for text in greedy(model, processor, rows, images, 12)]
    assert [answers[0].text for answers in together] == first
    assert len({answer.text for answers in together for answer in answers}) > len(rows)
    assert {answer.cut for answers in together for answer in answers} == {True, False}


def test_answers_are_those_of_plain_sampling_token_by_token(make, rows, images):
    from mfpo.processors import encode_questions

    model, processor = make("llava")
    model.generation_config.eos_token_id = 2
    sampled = sample(model, processor, rows[:1], images[:1], **HOW)[0][1]
    uniform = generator(0, rows[0]["question_id"]).spawn(3)[0].random(12)
    batch = dict(encode_questions(processor, [rows[0]["text"]], images[:1]))
    start = batch["input_ids"].shape[1]
    for number in uniform:
        with torch.inference_mode():
            p = model(**batch).logits[0, -1].double().softmax(dim=0).numpy()
        token = int(np.argmax(np.cumsum(p) > number))
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([[token]])], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if token == 2:
            break
    assert sampled.text == processor.decode(batch["input_ids"][0, start:], skip_special_tokens=True).strip()


def test_tokens_come_as_often_as_they_are_likely():
    p = torch.tensor([0.5, 0.3, 0.2])
    uniform = torch.from_numpy(np.random.default_rng(0).random((20_000, 1)))
    draw = Draw(uniform, 0, 1.0, torch.tensor([0]))
    counts = torch.bincount(draw.tokens(p.log().repeat(20_000, 1), 0), minlength=3) / 20_000
    torch.testing.assert_close(counts, p, atol=0.015, rtol=0)  # 4 standard errors
