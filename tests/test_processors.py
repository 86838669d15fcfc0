"""What processors lack or get wrong, mended or told in a line."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from fixtures.broken import edit
from mfpo.errors import MfpoError, RecordError
from mfpo.processors import encode_questions, load_processor


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("missing", ["patch_size", "num_additional_image_tokens", "processor_config.json"])
def test_a_processor_of_llava_that_does_not_say_how_many_tokens_an_image_is(model, missing):
    expected = encode_questions(load_processor(model), ["What?"], [picture()])
    path = model / "processor_config.json"
    if missing == path.name:  # as the first checkpoints of LLaVA have it: all parts in files of their own
        parts = json.loads(path.read_text())
        (model / "preprocessor_config.json").write_text(
            json.dumps(parts["image_processor"] | {"processor_class": "LlavaProcessor"})
        )
        path.unlink()
    else:
        edit(path, **{missing: None})
    found = encode_questions(load_processor(model), ["What?"], [picture()])
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_a_chat_template_in_the_tokenizers_configuration_alone(model):
    expected = load_processor(model).chat_template
    (model / "chat_template.jinja").unlink()
    edit(model / "tokenizer_config.json", chat_template=expected)
    assert load_processor(model).chat_template == expected


def test_no_chat_template_is_one_line_for_answers_too(model):
    (model / "chat_template.jinja").unlink()
    with pytest.raises(MfpoError, match=r"no chat template; put its chat_template\.jinja into the model folder"):
        encode_questions(load_processor(model), ["What?"], [picture()])


def test_questions_of_different_lengths_without_a_token_to_pad_with(model):
    questions = ["What?", "What is there in the picture?"]
    expected = encode_questions(load_processor(model), questions, [picture()] * 2)
    edit(model / "tokenizer_config.json", pad_token=None)
    batch = encode_questions(load_processor(model), questions, [picture()] * 2)
    assert batch["attention_mask"].tolist() == expected["attention_mask"].tolist()


def test_a_question_that_holds_the_models_image_token(model):
    processor = load_processor(model)
    processor.image_token = "[IMG]"
    with pytest.raises(RecordError, match=r"'Is \[IMG\] there\?' holds '\[IMG\]', which the model takes for an image"):
        encode_questions(processor, ["Is [IMG] there?"], [picture()])


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_processor_that_needs_torchvision_says_so_in_one_line(model):
    edit(model / "processor_config.json", processor_class="PixtralProcessor")
    with pytest.raises(MfpoError, match=r"its processor needs torchvision; pip install 'mfpo\[vlms\]'$"):
        load_processor(model)
