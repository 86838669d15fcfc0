"""Greedy answers, from a batch that ended rows leave, are those of plain generation, one question at a time."""

import numpy as np
import peft
import pytest
import torch
from PIL import Image

from mfpo.answer.greedy import greedy
from mfpo.answer.opera import opera
from mfpo.answer.vcd import vcd
from mfpo.processors import encode_questions


@pytest.mark.parametrize("name", ["llava", "qwen3_5"])
def test_rows_that_have_ended_leave_the_batch(make, name, monkeypatch):
    model, processor = make(name)
    # Every fourth token ends an answer, so that rows end one after the other.
    ends = [2, *range(4, len(processor.tokenizer), 8)]
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    random = np.random.default_rng(0)
    sides = [(40, 24), (24, 40), (32, 32)]
    images = [Image.fromarray(random.integers(0, 256, (*sides[number % 3], 3), dtype=np.uint8)) for number in range(16)]
    texts = ["What " * (1 + number % 5) + "is it?" for number in range(16)]

    def plain(text, image):
        batch = encode_questions(processor, [text], [image]).to(model.device, model.dtype)
        output = model.generate(**batch, do_sample=False, max_new_tokens=24)
        return processor.decode(output[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)

    with torch.inference_mode():
        alone = [plain(text, image) for text, image in zip(texts, images, strict=True)]
        widths = []
        generate = model.generate

        def counting(**options):
            widths.append(len(options["input_ids"]))
            return generate(**options)

        monkeypatch.setattr(model, "generate", counting)
        together = greedy(model, processor, [{"text": text} for text in texts], images, 24)
    assert together == alone
    assert widths[0] == 16
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) > 2
    assert len({len(text) for text in alone}) > 3


# Each changes what `generate` chooses, or how long it goes on.
STUBBORN = {
    "bad_words_ids": [[token] for token in range(100, 200)],
    "do_sample": True,
    "exponential_decay_length_penalty": (0, 9.0),
    "forced_eos_token_id": 2,
    "max_length": 3,
    "min_length": 900,
    "min_new_tokens": 9,
    "no_repeat_ngram_size": 1,
    "num_beams": 3,
    "repetition_penalty": 9.0,
    "suppress_tokens": list(range(40, 150)),
    "temperature": 9.0,
}


@pytest.mark.parametrize(
    ("decode", "settings"), [(greedy, {}), (vcd, {"seed": 3}), (opera, {"num_beams": 2, "num_attn_candidates": 2})]
)
def test_a_models_own_generation_settings_are_left_aside(make, rows, images, decode, settings):
    model, processor = make("llava")
    model.generation_config.eos_token_id = [2, *range(4, len(processor.tokenizer), 8)]
    with torch.inference_mode():
        expected = decode(model, processor, rows, images, 8, **settings)
        model.generation_config.update(**STUBBORN)
        before = model.generation_config.to_dict()
        wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))  # as good as the model
        assert decode(model, processor, rows, images, 8, **settings) == expected
        if decode is not opera:  # which reads the model's configuration
            assert decode(wrapped, processor, rows, images, 8, **settings) == expected
    assert model.generation_config.to_dict() == before
    assert len(set(expected)) == len(rows)


def test_a_model_without_an_end_ends_as_the_tokenizer_says(make, rows, images):
    model, processor = make("llava")
    with torch.inference_mode():
        expected = greedy(model, processor, rows, images, 40)
        model.generation_config.eos_token_id = None
        assert greedy(model, processor, rows, images, 40) == expected
