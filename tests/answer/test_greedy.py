"""Greedy answers, from a batch that ended rows leave, are those of plain generation, one question at a time."""

import numpy as np
import pytest
import torch
from PIL import Image

from mfpo.answer.greedy import greedy
from mfpo.models import encode_questions


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
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
