"""log p of records as each family's own processor encodes them, against one sequence at a time and all its logits."""

import inspect
from contextlib import nullcontext

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from fixtures.families import BLIND, LIMITS, Family, picture
from mfpo.errors import RecordError
from mfpo.logprobs.prefix import shared_scores, shares_prefix
from mfpo.logprobs.sequences import Encoded, by_token, collate, encode, in_chunks, logps_of, pad_id, plain_scores

# The turns of a conversation, each image at its place, as (role, text).
RECORDS = {
    "one image": (1, [("user", "What is there?")], ("A dog.", "A cat and a kite.")),
    "two images": (2, [("user", "Compare these.")], ("Both are grey.", "One is red.")),
    "a system message": (1, [("system", "Be terse."), ("user", "What is it?")], ("A dog.", "A boat, I think.")),
    "several turns": (1, [("user", "What?"), ("assistant", "A dog."), ("user", "Sure?")], ("Yes.", "No, a cat.")),
    "Chinese": (1, [("user", "图中有什么？")], ("一个人在骑车。", "一只狗。")),
    "emoji": (1, [("user", "Which 🐶 is it?")], ("A 🐶 and 👩‍👩‍👧!", "🎈")),
    "no image": (0, [("user", "What is there?")], ("A dog.", "A cat and a kite.")),
    "white space": (1, [("user", "What is there?")], (" A dog.", "  A cat.\n")),
}


def template(image: str) -> str:
    return (
        "<s>{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{{ '</s>' if message['role'] == 'assistant' }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )


class Reader:
    """What `encode` and a plain reader make of the same record."""

    def __init__(self, family: Family) -> None:
        self.model, self.processor = family.model, family.processor
        self.token = family.processor.image_token
        self.processor.chat_template = template(self.token)

    def encoded(self, name: str) -> Encoded:
        images, turns, answers = RECORDS[name]
        prompt = [{"role": role, "content": text} for role, text in turns]
        said = [[{"role": "assistant", "content": answer}] for answer in answers]
        return encode(self.processor, [picture(n) for n in range(images)], prompt, said, max_length=999)

    def plain(self, name: str) -> list[torch.Tensor]:
        """log p of each answer's tokens: the whole conversation through the processor and the model, all logits."""
        images, turns, answers = RECORDS[name]
        first = next(number for number, (role, _) in enumerate(turns) if role == "user")
        texts = [f"{self.token}\n" * images * (number == first) + text for number, (_, text) in enumerate(turns)]
        ends = ["</s>" * (role == "assistant") + "\n" for role, _ in turns]
        prompt = "<s>" + "".join(f"{turns[n][0]}: {texts[n]}{ends[n]}" for n in range(len(turns))) + "assistant: "
        return [self._logps(prompt, f"{answer}</s>", images) for answer in answers]

    def _logps(self, prompt: str, answer: str, images: int) -> torch.Tensor:
        pictures = [[picture(n) for n in range(images)]] if images else None
        given = {"images": pictures, "return_tensors": "pt", "add_special_tokens": False}
        before = self.processor(text=[prompt], **given)["input_ids"].shape[1]
        if "suffix" in inspect.signature(type(self.processor).__call__).parameters:  # it adds the end token itself
            inputs = dict(self.processor(text=[prompt], suffix=[answer.removesuffix("</s>")], **given))
        else:
            inputs = dict(self.processor(text=[prompt + answer], **given))
        inputs.pop("labels", None)
        with torch.no_grad():
            table = self.model(**inputs, use_cache=False).logits[0].log_softmax(dim=-1)
        ids = inputs["input_ids"][0, before:]
        return table[before - 1 : -1].gather(1, ids[:, None])[:, 0]


def assert_logps(reader: Reader, names: list[str]) -> None:
    """That those of the records `names`, in one batch, are those of each answer alone."""
    rows = [reader.encoded(name) for name in names]
    expected = [logps for name in names for logps in reader.plain(name)]
    ways = [(plain_scores, [part for row in rows for part in row.split()])]
    ways += [(shared_scores, rows)] * shares_prefix(reader.model)
    for way, batched in ways:
        batch = collate(batched, pad_id(reader.processor))
        with torch.no_grad():
            found = by_token(way(reader.model, batch, in_chunks(reader.model, logps_of)), batch)
        for logps, mask, slow in zip(found, batch["answer_mask"], expected, strict=True):
            torch.testing.assert_close(logps[mask], slow, rtol=1e-4, atol=1e-4)


def test_any_record_of_any_family(any_family):
    reader = Reader(any_family)
    assert_logps(reader, [name for name in RECORDS if name not in ("two images", "no image")])
    assert_logps(reader, ["two images"])
    if reason := LIMITS.get(any_family.name, {}).get("a batch of records with one image and with two"):
        with pytest.raises(RecordError, match=reason):
            assert_logps(reader, ["one image", "two images"])
    else:
        assert_logps(reader, ["one image", "two images"])


def test_a_prompt_without_an_image_beside_one_with_it(any_family):
    reason = LIMITS.get(any_family.name, {}).get(BLIND)
    with pytest.raises(RecordError, match=reason) if reason else nullcontext():
        assert_logps(Reader(any_family), ["one image", "no image"])


def test_the_models_own_token_of_an_image_is_no_text(any_family):
    """Neither what a template writes for an image nor, with Gemma 3, what the model sees in its place."""
    reader = Reader(any_family)
    for token in {reader.token, reader.processor.tokenizer.image_token}:
        said = [[{"role": "assistant", "content": f"A {token}."}]]
        with pytest.raises(RecordError, match="which the model takes for an image"):
            encode(reader.processor, [picture(0)], [{"role": "user", "content": "What?"}], said, max_length=999)


# Models of transformers 5.24 whose forward pass takes `logits_to_keep` among **kwargs: it may or may not heed it.
# Log p is right for both, but the logits of all positions take memory. A new one here has to be tried.
SWALLOW = {
    "Blip2ForConditionalGeneration",
    "DiffusionGemmaForBlockDiffusion",
    "InstructBlipForConditionalGeneration",
    "InstructBlipVideoForConditionalGeneration",
    "MiniCPMOcrForConditionalGeneration",
    "MiniCPMV4_6ForConditionalGeneration",
    "NemotronH_Omni_Reasoning_V3",
    "PI0ForConditionalGeneration",
    "Pix2StructForConditionalGeneration",
    "Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen3OmniMoeThinkerForConditionalGeneration",
    "UdopForConditionalGeneration",
    "VideoLlama3ForConditionalGeneration",
    "VisionEncoderDecoderModel",
}


def test_models_that_swallow_logits_to_keep_are_known():
    found, refuse = set(), set()
    for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values():
        forward = inspect.signature(getattr(transformers, name).forward).parameters.values()
        if "logits_to_keep" not in {parameter.name for parameter in forward}:
            takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in forward)
            (found if takes_all else refuse).add(name)
    assert not refuse, "their forward pass would raise a TypeError"
    assert found == SWALLOW
