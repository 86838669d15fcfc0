"""Sequence log-probabilities against the model's own logits, one row at a time and without padding."""

import json
import shutil
from functools import partial

import datasets
import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig
from PIL import Image

from fixtures.families import blip2, emu3, hunyuan_vl, idefics, mllama
from mfpo import processors
from mfpo.errors import MfpoError, RecordError, warn_once
from mfpo.logprobs.cells import TEXT
from mfpo.logprobs.conversation import end_tokens, render
from mfpo.logprobs.features import Layout
from mfpo.logprobs.pairs import Pairs, check_fit
from mfpo.logprobs.sequences import Encoded, collate, encode, pad_id, sequence_logps, token_logps
from mfpo.models import load_model
from mfpo.processors import load_processor
from mfpo.train.data import open_pairs
from mfpo.train.settings import TrainSettings

# Records as `mfpo train` opens them, and what it calls the records in a batch.
open_dpo = partial(open_pairs, settings=TrainSettings(method="dpo"))
PER_DEVICE = "per_device_train_batch_size"

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
    with pytest.raises(RecordError, match="max_length=20 leaves no room for an answer"):
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
    warn_once.cache_clear()
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


ASKED = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "What is there?"}]

# Chat templates as models have been published with, made small.
USER = "{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"
PRINTS_PARTS = (  # as GLM-4.1V's
    "{% for m in messages %}{% if m.role == 'user' %}[u]" + USER + "{% else %}[{{ m.role }}]{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
ADDS_STRINGS = (  # as Pixtral's, whose system message is a part of the last turn, if that is the user's
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[u]{% if loop.last and system %}"
    "{{ system + '\n' }}{% endif %}" + USER + "[/u]{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
SPACES = (  # as LLaVA-OneVision's, which asks with another white space than it answers with
    "{% for m in messages %}[{{ m.role }} ]\n"
    + USER
    + "{% endfor %}{% if add_generation_prompt %}[assistant ] \n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (PRINTS_PARTS, "[system]Be terse.[u]<image>What is there?[assistant]"),
        (ADDS_STRINGS, "[u]Be terse.\n<image>What is there?[/u]"),
        (SPACES, "[system ]\nBe terse.[user ]\n<image>What is there?[assistant ] \n"),
    ],
)
@pytest.mark.parametrize("answer", ["A dog.", " A dog.", "It's {'type': 'text'} \"there\"."])
def test_templates_that_do_not_print_parts_or_meet_in_other_white_space(processor, template, prompt, answer):
    processor.chat_template = template
    assert render(processor, ASKED, [say(answer)], images=1) == (prompt, [answer + "</s>"])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('Only user and assistant roles') }}", "cannot render the conversation .*Only user"),
        ("{% for m in messages %}{{ m.content[0].txt }}{% endfor %}", "loses the text 'Be terse.' of a turn by system"),
        ("{% for m in messages %}{{ m.content[-1].text }}{% endfor %}", "leaves out the image"),
        ("{% for m in messages %}{{ m.content[0].text", "cannot render"),
    ],
)
def test_templates_that_cannot_be_used_say_why(processor, template, words):
    processor.chat_template = template
    with pytest.raises(MfpoError, match=words):
        render(processor, ASKED, [say("A dog.")], images=1)


@pytest.mark.parametrize("ids", [7, [2, 7]])
def test_a_turn_that_the_template_has_ended_gets_no_second_end(processor, tmp_path, ids):
    """As Gemma 3's, which ends turns by another token than its tokenizer names; `<0x07>` stands for it here."""
    token = processor.tokenizer.convert_ids_to_tokens(7)
    processor.chat_template = processor.chat_template.replace("</s>", token + "\n")
    assert render(processor, PROMPT, [say("A dog.")], images=1)[1] == [f" A dog.{token}</s>"]
    processor.tokenizer.name_or_path = str(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert render(processor, PROMPT, [say("A dog.")], images=1)[1] == [f" A dog.{token}"]


def test_a_tokenizer_without_an_end_is_an_error(processor):
    processor.tokenizer.eos_token, processor.tokenizer.name_or_path = None, ""
    with pytest.raises(MfpoError, match="no end token"):
        render(processor, PROMPT, [say("A dog.")], images=1)


def test_the_models_image_token_in_an_answer_is_an_error(processor):
    with pytest.raises(RecordError, match=r"'An <image>\.' holds '<image>'"):
        render(processor, PROMPT, [say("An <image>.")], images=1)


def with_feature(processor, feature):
    """The processor, which makes one more feature of the tokens and the images' pixels of a batch."""
    original = processor.__class__.__call__

    class WithFeature(processor.__class__):
        def __call__(self, *args, **kwargs):
            inputs = original(self, *args, **kwargs)
            inputs["feature"] = feature(inputs["input_ids"], inputs["pixel_values"])
            return inputs

    processor.__class__ = WithFeature
    return processor


def test_features_are_joined_as_the_processor_joins_them(processor):
    """Along the second dimension here, and others padded with zeros."""
    with_feature(processor, lambda ids, pixels: pixels.mean(dim=(1, 2, 3)).expand(2, -1).clone())
    rows = [encode(processor, [picture(n)], PROMPT, [say("A dog.")], max_length=500) for n in range(3)]
    assert rows[0].layouts["feature"] == Layout(join=1)
    assert torch.equal(collate(rows, 0)["feature"], torch.cat([row.features["feature"] for row in rows], dim=1))


def test_masks_of_images_go_on_over_the_answers(processor):
    """As Llama 3.2's: which images a token sees, (rows, tokens, images, tiles)."""
    with_feature(
        processor, lambda ids, pixels: (ids == 3).cumsum(dim=1).clamp(max=1)[:, :, None, None].expand(-1, -1, 1, 2)
    )
    answers = [say("A dog."), say("A cat and a kite.")]
    batch = collate([encode(processor, [picture(0)], PROMPT, answers, max_length=500)], 0)
    sees = batch["feature"][0, :, 0]
    assert sees.shape == (batch["input_ids"].shape[1], 2)
    first = int((batch["input_ids"][0] == 3).nonzero()[0, 0])
    assert not sees[:first].any()
    assert sees[first:].all()


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        (lambda ids, pixels: pixels.sum(), "for two prompts not twice that"),
        (lambda ids, pixels: pixels[:1], "for two prompts not twice that"),
        (lambda ids, pixels: [1] * len(ids), "is not a tensor"),
        (lambda ids, pixels: ids, "do not follow from the prompt's"),
        (lambda ids, pixels: ids[:, None].expand(-1, 2, -1), "grows to .* with an answer"),
    ],
)
def test_features_that_fit_no_batch_are_refused(processor, feature, words):
    with pytest.raises(MfpoError, match=f"makes 'feature' of a prompt, which .*{words}"):
        encode(with_feature(processor, feature), [picture(0)], PROMPT, [say("A dog.")], max_length=500)


def test_a_processor_that_shows_one_image_whatever_the_template_writes():
    processor = blip2()
    processor.chat_template = (
        "{% for m in messages %}{% for p in m.content if p.text %}{{ p.text }} {% endfor %}{% endfor %}"
    )
    row = encode(processor, [picture(0)], PROMPT, [say("A dog.")], max_length=500)
    shown = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (row.prompt_ids == shown).tolist() == [True] * 4 + [False] * (len(row.prompt_ids) - 4)
    with pytest.raises(RecordError, match="the model's processor shows only one image per prompt, and this one has 2"):
        encode(processor, [picture(0), picture(1)], PROMPT, [say("A dog.")], max_length=500)


def test_a_processor_that_takes_no_list_of_images_for_each_text(processor):
    """As GOT-OCR's, for which such a list is the pages of a document."""
    expected = encode(processor, [picture(0)], PROMPT, [say("A dog.")], max_length=500)
    call = processor.__class__.__call__

    class Flat(processor.__class__):
        def __call__(self, images=None, **options):
            if any(isinstance(image, list) for image in images):
                raise ValueError("Nested images are only supported with `multi_page`")
            return call(self, images=images, **options)

    processor.__class__ = Flat
    found = encode(processor, [picture(0)], PROMPT, [say("A dog.")], max_length=500)
    torch.testing.assert_close(found.features, expected.features, rtol=0, atol=0)
    with pytest.raises(RecordError, match="cannot take the prompt"):
        encode(processor, [picture(0), picture(1)], PROMPT, [say("A dog.")], max_length=500)


def test_an_adapters_answers_end_as_those_of_its_base(tiny_llava, tmp_path):
    base = shutil.copytree(tiny_llava, tmp_path / "base")
    (base / "generation_config.json").write_text('{"eos_token_id": [2, 1]}')
    LoraConfig(base_model_name_or_path=str(base)).save_pretrained(tmp_path / "adapter")
    load_processor(base).save_pretrained(tmp_path / "adapter")
    expected = end_tokens(load_processor(base))
    assert expected == ["</s>", "</s>", "<s>"]
    assert end_tokens(transformers.AutoProcessor.from_pretrained(tmp_path / "adapter")) == expected


def test_a_processor_that_puts_the_image_where_the_model_is_to_answer_is_refused():
    processor = idefics()
    processor.chat_template = "{% for m in messages %}{{ m.content[-1].text }} {% endfor %}assistant: "
    with pytest.raises(MfpoError, match="IdeficsProcessor puts the images after the text"):
        encode(processor, [picture(0)], PROMPT, [say("A dog.")], max_length=500)
    with pytest.raises(MfpoError, match="puts the images after the text"):
        processors.encode_questions(processor, ["What?"], [picture(0)])


def records_of(*pictures: list[Image.Image], **columns) -> datasets.Dataset:
    answers = {"prompt": PROMPT, "chosen": say("A dog."), "rejected": say("A cat.")}
    own = [{name: value[n] for name, value in columns.items()} for n in range(len(pictures))]
    return datasets.Dataset.from_list(
        [{"id": str(n), "images": images, **answers, **own[n]} for n, images in enumerate(pictures)]
    )


def test_a_model_that_mixes_the_images_of_a_batch_is_refused():
    """The largest image comes first, which nothing is added to."""
    torch.manual_seed(0)
    model, processor = emu3()
    processor.chat_template = "<image>{% for m in messages %}{{ m.content[-1].text }} {% endfor %}"
    small, large = picture(0), Image.fromarray(np.asarray(picture(1)).repeat(2, axis=1))
    records = records_of([large], [large], [small])
    pairs = Pairs(records, processor, cells=TEXT, max_length=500)
    check_fit(model, pairs, "m")
    with pytest.raises(MfpoError, match=r"log p of record '2' changes .* a 'emu3' model mixes them; set batch_size=1"):
        check_fit(model, pairs, "m", batch_size=2)
    with pytest.raises(MfpoError, match=f"mixes them; set {PER_DEVICE}=1"):
        check_fit(model, open_dpo(records, processor), "m", batch_size=2)
    pairs = Pairs(
        records_of([large], rejected_images=[[small]]), processor, cells=["chosen", "rejected_image"], max_length=500
    )
    with pytest.raises(
        MfpoError, match=r"record '0' changes .* mixes them; give the rejected images the sizes of the images"
    ):
        check_fit(model, pairs, "m")
    model, processor = hunyuan_vl()
    processor.chat_template = "<break><image><break>{% for m in messages %}{{ m.content[-1].text }} {% endfor %}"
    pairs = Pairs(records, processor, cells=TEXT, max_length=500)
    rows = pairs[0].prompts[0].split()
    with torch.no_grad():
        first, second = sequence_logps(model, collate(rows, 0))
        alone = [sequence_logps(model, collate([row], 0)).item() for row in rows]
    assert first.item() == pytest.approx(alone[0], abs=1e-4)
    assert abs(second.item() - alone[1]) > 1e-3
    with pytest.raises(MfpoError, match="m: a 'hunyuan_vl' model numbers the images of all rows"):
        check_fit(model, pairs, "m")


def test_prompts_that_a_model_cannot_see_at_a_time_say_what_helps():
    """Records with one image and with two: smaller batches. A prompt beside itself without its image: no batch does."""
    model, processor = mllama()
    processor.chat_template = (
        "{% for m in messages %}{% for part in m.content %}"
        "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %} {% endfor %}"
    )
    records = records_of([picture(0)], [picture(0), picture(1)])
    for open_them, name in ((partial(Pairs, cells=TEXT, max_length=500), "batch_size"), (open_dpo, PER_DEVICE)):
        with pytest.raises(RecordError, match=f"^the model cannot .* images in one batch .*; set {name}=1$"):
            check_fit(model, open_them(records, processor), "m", batch_size=2)
    pairs = Pairs(records, processor, cells=["chosen", "chosen_blind"], max_length=500)
    with pytest.raises(RecordError, match=r"^record '0': the model cannot see .*; choose another method$"):
        check_fit(model, pairs, "m")
