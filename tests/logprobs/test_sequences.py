"""Sequence log-probabilities against the model's own logits, one row at a time and without padding."""

import numpy as np
import pytest
import torch
from PIL import Image

from mfpo import models
from mfpo.errors import MfpoError, RecordError
from mfpo.logprobs.sequences import Encoded, collate, encode, pad_id, render, sequence_logps, token_logps
from mfpo.models import load_model, load_processor

PROMPT = [{"role": "user", "content": "What is there?"}]


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model(tiny_llava):
    return load_model(tiny_llava)


@pytest.fixture
def processor(tiny_llava):
    return load_processor(tiny_llava)


@pytest.fixture
def rows(processor) -> list[Encoded]:
    two = [{"role": "user", "content": "Compare these."}]
    return [
        *encode(
            processor, [picture(0)], PROMPT, [say("A dog."), say("A dog and an old clock.")], max_length=500
        ).split(),
        encode(processor, [picture(1), picture(2)], two, [say("Both are grey.")], max_length=500),
    ]


def slow_logps(model, row: Encoded) -> torch.Tensor:
    """The answer's log-probabilities of one row by the book: all logits, log_softmax, gather."""
    ids = torch.cat([row.prompt_ids, *row.answers])
    logits = model(input_ids=ids[None], **row.features).logits[0]
    logps = torch.log_softmax(logits.float(), dim=-1)
    positions = torch.arange(len(row.prompt_ids), len(ids))
    return logps[positions - 1, ids[positions]]


def test_padded_batch_is_one_row_at_a_time(model, processor, rows):
    batch = collate(rows, pad_id(processor))
    assert len({len(row.prompt_ids) + len(row.answers[0]) for row in rows}) == 3, "the rows should need padding"
    slow = torch.stack([slow_logps(model, row).sum() for row in rows])
    torch.testing.assert_close(sequence_logps(model, batch), slow, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_one_row_at_a_time(model, processor, rows):
    weights = model.model.language_model.layers[0].self_attn.q_proj.weight
    (fast,) = torch.autograd.grad(sequence_logps(model, collate(rows, pad_id(processor))).sum(), weights)
    (slow,) = torch.autograd.grad(sum(slow_logps(model, row).sum() for row in rows), weights)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_token_logps_are_0_outside_the_answer(model, processor, rows):
    logps = token_logps(model, collate(rows, pad_id(processor)))
    for row, values in zip(rows, logps, strict=True):
        slow = slow_logps(model, row)
        torch.testing.assert_close(values[values != 0], slow, rtol=1e-5, atol=1e-5)


def test_the_tokens_are_those_of_the_whole_conversation(processor):
    row = encode(processor, [picture(0)], PROMPT, [say("A dog.")], max_length=500)
    whole = processor(
        text="USER: <image>\nWhat is there? ASSISTANT: A dog.</s>", images=picture(0), return_tensors="pt"
    )
    assert torch.cat([row.prompt_ids, *row.answers]).tolist() == whole["input_ids"][0].tolist()
    assert processor.decode(row.answers[0]) == " A dog.</s>"
    assert (row.prompt_ids == processor.image_token_id).sum() == 16


def test_end_token_is_added_where_the_template_gives_none(processor):
    processor.chat_template = processor.chat_template.replace("</s>", " ")
    assert render(processor, PROMPT, [say("A dog.")], images=1)[1] == [" A dog.</s>"]


def test_nothing_behind_the_end_token_is_counted(processor):
    processor.chat_template = processor.chat_template.replace("</s>", "</s>\n")
    assert render(processor, PROMPT, [say("A dog.")], images=1)[1] == [" A dog.</s>"]


def test_max_length_cuts_the_end_of_the_answer_alone(processor):
    answers = [say("A dog."), say("A cat and a dog.")]
    whole = encode(processor, [picture(0)], PROMPT, answers, max_length=500)
    row = encode(processor, [picture(0)], PROMPT, answers, max_length=len(whole.prompt_ids) + len(whole.answers[0]) - 3)
    assert row.cut == (3, 3 + len(whole.answers[1]) - len(whole.answers[0]))
    assert whole.cut == (0, 0)
    assert row.prompt_ids.tolist() == whole.prompt_ids.tolist()
    assert row.answers[0].tolist() == whole.answers[0][:-3].tolist()
    assert row.answers[1].tolist() == whole.answers[1][: len(row.answers[0])].tolist()


def test_prompt_that_leaves_no_room_is_an_error(processor):
    with pytest.raises(RecordError, match="max_length=20 leaves no answer"):
        encode(processor, [picture(0)], PROMPT, [say("A dog.")], max_length=20)


def test_template_that_rewrites_the_prompt_is_an_error(processor):
    processor.chat_template = "{{ messages | length }}" + processor.chat_template
    with pytest.raises(MfpoError, match="renders a prompt differently"):
        render(processor, PROMPT, [say("A dog.")], images=1)


def test_processor_without_template_is_an_error(processor):
    processor.chat_template = None
    with pytest.raises(MfpoError, match="no chat template"):
        render(processor, PROMPT, [say("A dog.")], images=1)


def test_images_stand_in_the_first_user_turn_only(processor):
    prompt = [*PROMPT, *say("A dog."), {"role": "user", "content": "Sure?"}]
    text, _ = render(processor, prompt, [say("Yes.")], images=2)
    assert text == "USER: <image>\n<image>\nWhat is there? ASSISTANT: A dog.</s>USER: Sure? ASSISTANT:"


def test_prompt_without_user_turn_is_an_error(processor):
    with pytest.raises(RecordError, match="no user turn"):
        render(processor, say("Hello."), [say("Yes.")], images=1)


def test_images_of_fewer_tiles_are_padded_with_zeros():
    answers = (torch.arange(2),)
    rows = [Encoded(torch.arange(2), answers, {"pixel_values": torch.ones(1, tiles, 2)}, (0,)) for tiles in (3, 1)]
    pixels = collate(rows, 0)["pixel_values"]
    assert pixels.shape == (2, 3, 2)
    assert pixels.sum(dim=(1, 2)).tolist() == [6.0, 2.0]


def test_token_types_of_an_answer_are_text(processor):
    answers = (torch.arange(2),)
    rows = [
        Encoded(torch.arange(n), answers, {"mm_token_type_ids": torch.ones(1, n, dtype=torch.long)}, (0,))
        for n in (5, 3)
    ]
    assert collate(rows, 0)["mm_token_type_ids"].tolist() == [[1] * 5 + [0] * 2, [1] * 3 + [0] * 4]
    original = processor.__class__.__call__

    class WithTypes(processor.__class__):
        def __call__(self, *args, **kwargs):
            inputs = original(self, *args, **kwargs)
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.image_token_id).long()
            return inputs

    processor.__class__ = WithTypes
    row = encode(processor, [picture(0)], PROMPT, [say("A dog.")], max_length=500)
    types = collate([row], 0)["mm_token_type_ids"][0]
    ids = torch.cat([row.prompt_ids, *row.answers])
    assert types.tolist() == (ids == processor.image_token_id).long().tolist()


PLACED = [{"role": "user", "content": "In <image> and <image> I see"}]


def test_images_stand_where_the_prompt_has_their_places(processor):
    text, _ = render(processor, PLACED, [say("A dog.")], images=2)
    assert text == "USER: In <image>\n and <image>\n I see ASSISTANT:"
    row = encode(processor, [picture(0), picture(1)], PLACED, [say("A dog.")], max_length=500)
    places = (row.prompt_ids == processor.image_token_id).nonzero()[:, 0]
    assert len(places) == 32
    assert (places.diff() > 1).sum() == 1, "text stands between the images"


def test_places_before_the_text_are_those_of_the_template(processor):
    prompt = [{"role": "user", "content": "<image>\nWhat is there?"}]
    assert render(processor, prompt, [say("A dog.")], images=1) == render(processor, PROMPT, [say("A dog.")], images=1)


@pytest.mark.parametrize("images", [0, 1, 3])
def test_places_for_more_or_fewer_images_are_an_error(processor, images):
    with pytest.raises(
        RecordError, match=f"<image> occurs 2 times in the prompt, but the number of images is {images}"
    ):
        render(processor, PLACED, [say("A dog.")], images=images)


def test_a_template_that_moves_images_before_the_text_is_named(processor, caplog):
    models._warn.cache_clear()
    render(processor, PLACED, [say("A dog.")], images=2)
    assert not caplog.messages
    parts = "{% for part in message['content'] %}"
    ordered = "{% for part in message['content'] | sort(attribute='type') %}"  # image before text, as in LLaVA's own
    assert parts in processor.chat_template
    processor.chat_template = processor.chat_template.replace(parts, ordered)
    text, _ = render(processor, PLACED, [say("A dog.")], images=2)
    assert text == "USER: <image>\n<image>\nIn  and  I see ASSISTANT:"
    render(processor, PLACED, [say("A dog.")], images=2)
    assert caplog.messages == [
        "the model's chat template puts images before the text: the position of <image> in a prompt is lost"
    ]
