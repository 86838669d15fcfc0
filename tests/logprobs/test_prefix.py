"""Answers that share their prompt's row against one answer a row, and the mask against its rule in words."""

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention.flex_attention import create_mask
from torch.utils._python_dispatch import TorchDispatchMode

from mfpo.dataset import read_dataset
from mfpo.errors import warn_once
from mfpo.logprobs import sequences as logprobs
from mfpo.logprobs.attention import attend_by_document, lengths_of
from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.prefix import (
    TOKEN_TYPES,
    block_mask,
    can_flex,
    mask_rule,
    pack,
    positions,
    scores_under_mask,
    shared_scores,
    shares_prefix,
)
from mfpo.logprobs.sequences import Encoded, by_token, collate, in_chunks, logps_of, plain_scores, token_logps
from mfpo.models import load_model
from mfpo.processors import load_processor


def by_the_book(model, rows: list[Encoded]) -> list[torch.Tensor]:
    """Each answer alone behind its prompt: all logits, log_softmax, gather; no padding, no mask, no positions."""
    logps = []
    for row in split(rows):
        ids = torch.cat([row.prompt_ids, *row.answers])
        features = dict(row.features)
        for name in {*TOKEN_TYPES} & features.keys():
            answer_types = torch.zeros(1, len(row.answers[0]), dtype=torch.long)
            features[name] = torch.cat([features[name], answer_types], dim=1)
        table = model(input_ids=ids[None], **features).logits[0].log_softmax(dim=-1)
        logps.append(table[len(row.prompt_ids) - 1 : -1].gather(1, row.answers[0][:, None]).squeeze(1))
    return logps


def shared_logps(model, batch):
    return by_token(shared_scores(model, batch, in_chunks(model, logps_of)), batch)


def plain_logps(model, batch):
    return by_token(plain_scores(model, batch, in_chunks(model, logps_of)), batch)


def logps_under_mask(model, batch, mask):
    return by_token(scores_under_mask(model, batch, mask, in_chunks(model, logps_of)), batch)


def dense_mask(batch):
    """The rule as a mask, (rows, 1, length, length)."""
    rows, length = batch["documents"].shape
    row, place = torch.arange(rows)[:, None, None, None], torch.arange(length)
    return mask_rule(batch)(row, torch.zeros_like(row), place[:, None], place)


def packed_logps(model, batch):
    """What a GPU computes, with the dense form of its mask."""
    batch = pack(batch | {"position_ids": positions(model, batch)})
    return logps_under_mask(model, batch, dense_mask(batch))


def ways(family):
    """How the shared path runs on a CPU, and on a GPU where FlexAttention can."""
    return (shared_logps, packed_logps) if can_flex(family.model.config) else (shared_logps,)


def split(rows: list[Encoded]) -> list[Encoded]:
    return [part for row in rows for part in row.split()]


def gradients(model, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a sum with random weights, so that no token's gradient hides behind another's."""
    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    (weights * logps).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same_gradients(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    whole = torch.stack([gradient.norm() for gradient in right.values()]).norm()
    for name, gradient in right.items():
        # A bias that attention cancels has no gradient but noise: it counts by what it adds to the whole.
        scale = max(gradient.norm(), 1e-3 * whole)
        assert (left[name] - gradient).norm() < 1e-5 * scale, name


def test_each_answer_gets_what_it_gets_alone(family):
    assert shares_prefix(family.model)
    batch = collate(family.rows, 0)
    slow = by_the_book(family.model, family.rows)
    for way in ways(family):
        fast = way(family.model, batch)
        assert fast.shape == batch["answer_mask"].shape
        for logps, mask, expected in zip(fast, batch["answer_mask"], slow, strict=True):
            torch.testing.assert_close(logps[mask], expected, rtol=1e-5, atol=1e-5)
            assert not logps[~mask].any()


def test_gradients_are_those_of_the_plain_path(family):
    plain = gradients(family.model, plain_logps(family.model, collate(split(family.rows), 0)))
    assert any("vision" in name or "visual" in name for name in plain)
    for way in ways(family):
        assert_same_gradients(gradients(family.model, way(family.model, collate(family.rows, 0))), plain)


def test_gradient_checkpointing_changes_nothing(family):
    batch = collate(family.rows, 0)
    passes = []
    family.model.get_decoder().layers[0].self_attn.q_proj.register_forward_pre_hook(lambda *_: passes.append(1))
    expected = gradients(family.model, shared_logps(family.model, batch))
    assert len(passes) == 1
    family.model.gradient_checkpointing_enable()
    family.model.train()
    assert_same_gradients(gradients(family.model, shared_logps(family.model, batch)), expected)
    assert len(passes) == 3, "the layer is computed again in the backward pass"


def test_images_and_the_prompt_are_seen(family):
    batch = collate(family.rows, 0)
    logps = shared_logps(family.model, batch).sum(dim=1)
    # Not darker ones: a tower that begins with a norm would see no difference.
    mirrored = shared_logps(family.model, batch | {"pixel_values": batch["pixel_values"].flip(-1)}).sum(dim=1)
    assert ((logps - mirrored).abs() > 1e-3).all()
    ids = batch["input_ids"].clone()
    ids[0, len(family.rows[0].prompt_ids) - 2] += 1
    other = shared_logps(family.model, batch | {"input_ids": ids}).sum(dim=1)
    assert ((logps - other).abs() > 1e-3).tolist() == [True] * 2 + [False] * 6


def test_an_answer_is_blind_to_the_others_and_to_other_records(family):
    rows = list(family.rows)
    logps = shared_logps(family.model, collate(rows, 0))
    rows[0] = Encoded(rows[0].prompt_ids, (rows[0].answers[0] - 1, rows[0].answers[1]), rows[0].features, (0, 0))
    other = shared_logps(family.model, collate(rows, 0))
    changed = (logps - other).abs().amax(dim=1) > 1e-5
    assert changed.tolist() == [True] + [False] * 7


def test_every_image_is_encoded_once(family):
    tower = family.model.get_encoder(modality="image")
    seen = []
    tower.register_forward_hook(lambda module, args, kwargs, output: seen.append((args, kwargs)), with_kwargs=True)
    shared_logps(family.model, collate(family.rows, 0))
    plain_logps(family.model, collate(split(family.rows), 0))
    (once, rows_of_one) = (next(v for v in [*args, *kwargs.values()] if torch.is_tensor(v)) for args, kwargs in seen)
    if family.name == "paddleocr_vl":  # all patches in a batch of one
        once, rows_of_one = once[0], rows_of_one[0]
    images = sum(tiles(family.name, row) for row in family.rows)
    assert len(once) == images
    assert len(rows_of_one) == sum(tiles(family.name, row) for row in split(family.rows)) > images


def tiles(name: str, row: Encoded) -> int:
    """What the vision tower takes for a row: images, tiles, or patches."""
    if name in ("llava_next", "llava_onevision"):  # padded to the image with the most tiles
        return int((row.features["pixel_values"].flatten(2) != 0).any(dim=2).sum())
    return row.features["pixel_values"].shape[1 if name in ("idefics2", "idefics3", "smolvlm") else 0]


def test_frozen_vision_tower_keeps_nothing_for_a_backward_pass(family):
    """Not even with adapters and checkpointing, when the Trainer makes inputs require gradients."""
    tower = family.model.get_encoder(modality="image")
    policy = get_peft_model(family.model, LoraConfig(target_modules=r".*(language|text)_model.*q_proj"))
    policy.gradient_checkpointing_enable()
    policy.train()
    outputs = []
    tower.register_forward_hook(lambda module, args, output: outputs.append(output.last_hidden_state))
    batch = collate(family.rows, 0)
    logps = shared_logps(policy, batch)
    assert logps.requires_grad
    assert [output.requires_grad for output in outputs] == [False]
    assert all("lora" in name for name in gradients(policy, logps))


def test_logits_exist_in_chunks_only(make_llava, monkeypatch):
    family = make_llava()
    vocabulary = family.model.config.text_config.vocab_size
    batch = collate(family.rows, 0)
    tokens = int(batch["answer_mask"].sum())
    expected = gradients(family.model, shared_logps(family.model, batch))
    monkeypatch.setattr(logprobs, "_LOGITS", 5 * vocabulary)
    with LargestLogits(vocabulary) as largest:
        found = gradients(family.model, shared_logps(family.model, batch))
    assert_same_gradients(found, expected)
    assert largest.tokens == 5 < tokens


class LargestLogits(TorchDispatchMode):
    """The most tokens of any tensor that is as wide as the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.tokens = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            # The head's weights and their gradient, transposed, are as wide too, and have 64 rows.
            if torch.is_tensor(tensor) and tensor.shape[-1:] == (self.vocabulary,) and len(tensor) != 64:
                self.tokens = max(self.tokens, tensor.numel() // self.vocabulary)
        return output


def test_the_head_is_whole_again_after_an_error(make_llava):
    family = make_llava()
    batch = collate(family.rows, 0)
    with pytest.raises(ValueError, match="tokens: "):
        shared_logps(family.model, batch | {"pixel_values": batch["pixel_values"][:1]})
    with torch.no_grad():
        assert plain_logps(family.model, collate(split(family.rows), 0)).shape == batch["answer_mask"].shape


def test_the_mask_is_the_rule_in_words():
    rows = [
        Encoded(torch.arange(3), (torch.arange(2), torch.arange(1)), {}, (0, 0)),
        Encoded(torch.arange(2), (torch.arange(2),), {}, (0,)),
    ]
    batch = collate(rows, 0)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3], [0, 1, 2, 3, 0, 0]]
    assert batch["predictors"].tolist() == [[2, 3], [2, 0], [7, 8]]
    seen = {
        0: {0: "0", 1: "01", 2: "012", 3: "0123", 4: "01234", 5: "0125"},
        1: {0: "0", 1: "01", 2: "012", 3: "0123", 4: "4", 5: "45"},
    }
    expected = [[[str(key) in seen[row][query] for key in range(6)] for query in range(6)] for row in (0, 1)]
    assert dense_mask(batch)[:, 0].tolist() == expected
    packed = pack(batch)
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2, 3]]
    assert packed["predictors"].tolist() == [[2, 3], [2, 0], [7, 8]]
    whole = dense_mask(packed)[0, 0]
    assert whole[:6, :6].tolist() == expected[0]
    assert whole[6:, 6:].tolist() == [line[:4] for line in expected[1][:4]]
    assert not whole[:6, 6:].any()
    assert not whole[6:, :6].any()


def test_block_mask_is_the_dense_mask_in_blocks():
    generator = torch.Generator().manual_seed(0)
    rows = []
    for lengths in ((150, 90, 40), (300, 7), (20, 130, 130)):
        prompt, *answers = (torch.randint(9, (n,), generator=generator) for n in lengths)
        rows.append(Encoded(prompt, tuple(answers), {}, (0,) * len(answers)))
    for batch in (pack(collate(rows, 0)), collate(rows, 0)):
        dense = dense_mask(batch)
        count, _, length, _ = dense.shape
        blocks = block_mask(batch)
        from_rule = create_mask(blocks.mask_mod, count, 1, length, length, device="cpu")
        assert torch.equal(from_rule, dense)
        side = -(-length // 128) * 128
        squares = torch.zeros(count, side, side, dtype=torch.bool)
        squares[:, :length, :length] = dense[:, 0]
        any_in_block = squares.view(count, side // 128, 128, side // 128, 128).any(dim=4).any(dim=2)
        assert torch.equal(blocks.to_dense()[:, 0].bool(), any_in_block)


def test_flex_attention_sees_what_the_rule_says(family):
    """Not compiled, which computes the rule of the mask that it is given for all pairs of tokens.

    Forward only: torch has no backward pass of it on a CPU.
    """
    if not family.model.get_decoder()._supports_flex_attn or not can_flex(family.model.config):
        pytest.skip("no FlexAttention for its language model")
    batch = collate(family.rows, 0)
    with torch.no_grad():
        expected = shared_logps(family.model, batch)
        family.model.set_attn_implementation({"text_config": "flex_attention"})
        with torch.compiler.set_stance("force_eager"):
            found = shared_logps(family.model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_attention_by_document_is_attention_under_the_mask():
    """With grouped heads and a prompt of one token; softmax(q k / sqrt(width)) v in float64, written out."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for lengths in ((5, 3, 1), (1, 2), (4, 1, 1, 2), (3, 1)):
        prompt, *answers = (torch.zeros(n, dtype=torch.long) for n in lengths)
        rows.append(Encoded(prompt, tuple(answers), {}, (0,) * len(answers)))
    batch = pack(collate(rows, 0))
    lengths = lengths_of(batch)
    assert lengths.tolist() == [[[[5, 3, 1, 0], [1, 2, 0, 0], [4, 1, 1, 2], [3, 1, 0, 0]]]]
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    query, key, value = (torch.randn(1, heads, 24, 8, generator=generator).double() for heads in (4, 2, 2))
    key_of_heads, value_of_heads = (states.repeat_interleave(2, dim=1) for states in (key, value))
    scores = (query @ key_of_heads.mT * 8**-0.5).masked_fill(~dense_mask(batch), -torch.inf)
    expected = (scores.softmax(dim=-1) @ value_of_heads).transpose(1, 2)
    found, _ = attend_by_document(module, query, key, value, lengths, scaling=8**-0.5)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_batch_is_packed_and_attends_by_document(make_llava):
    """No padding goes through the model, and no mask over all pairs of tokens."""
    family = make_llava()
    batch = collate(family.rows, 0)
    seen = []
    layer = family.model.get_decoder().layers[0]
    layer.register_forward_pre_hook(lambda _, args, given: seen.append((args[0], given)), with_kwargs=True)
    shared_logps(family.model, batch)
    states, given = seen[0]
    assert states.shape[:2] == (1, int((batch["documents"] >= 0).sum()))
    assert given["attention_mask"].shape == (1, 1, len(family.rows), 4)


def test_the_mask_matters(make_llava):
    """A plain causal mask, and positions that do not restart, give other numbers: the tests above can fail."""
    family = make_llava()
    batch = collate(family.rows[:1], 0)
    right = shared_logps(family.model, batch)
    causal = logps_under_mask(family.model, batch, torch.ones_like(dense_mask(batch)).tril())
    assert torch.allclose(causal[0], right[0], atol=1e-5)
    assert not torch.allclose(causal[1], right[1], atol=1e-2)
    onward = batch | {"position_ids": torch.arange(batch["input_ids"].shape[1])[None]}
    assert not torch.allclose(shared_logps(family.model, onward)[1], right[1], atol=1e-2)


def test_a_record_gives_the_same_either_way_when_answers_are_cut(tiny_llava, preference_data):
    model = load_model(tiny_llava)
    prompt = 16 + len("USER: \nWhat is there? ASSISTANT:")
    pairs = Pairs(
        read_dataset(preference_data), load_processor(tiny_llava), cells=TEXT_AND_IMAGE, max_length=prompt + 20
    )
    records = [pairs[row] for row in range(6)]
    cut = sum(tokens > 0 for record in records for tokens in record.prompts[0].cut)
    assert 0 < cut < 12
    shared, plain = pairs.collate(records, shared=True), pairs.collate(records)
    assert len(shared["input_ids"]) == 12
    assert len(plain["input_ids"]) == 18
    assert shared.pop("rows").tolist() == plain.pop("rows").tolist() == list(range(6))
    assert torch.equal(shared["answer_ids"], plain["answer_ids"])
    with torch.no_grad():
        torch.testing.assert_close(shared_logps(model, shared), plain_logps(model, plain), rtol=1e-5, atol=1e-5)


EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.mark.parametrize(
    "text",
    [
        {"model_type": "mistral", "sliding_window": 8},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
        {"model_type": "gemma", "head_dim": 16},
        {"model_type": "mixtral", **EXPERTS},
        {"model_type": "olmo2"},
        {"model_type": "phi3", "sliding_window": 8},
        {"model_type": "qwen3_moe", "head_dim": 16, **EXPERTS},
    ],
    ids=lambda text: text["model_type"],
)
def test_language_models_that_share_in_llava(make_llava, text):
    family = make_llava(**text)
    assert shares_prefix(family.model)
    with torch.no_grad():
        logps = shared_logps(family.model, collate(family.rows, 0))
        slow = by_the_book(family.model, family.rows)
    for values, expected in zip(logps, slow, strict=True):
        torch.testing.assert_close(values[: len(expected)], expected, rtol=1e-5, atol=1e-5)


def test_other_language_models_take_the_plain_path_and_the_log_says_so_once(make_llava, caplog):
    family = make_llava(model_type="granite", logits_scaling=8.0)
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING), torch.no_grad():
        assert not shares_prefix(family.model)
        logps = token_logps(family.model, collate(split(family.rows), 0))
    assert ["'granite', is not known" in message for message in caplog.messages] == [True]
    for values, expected in zip(logps, by_the_book(family.model, family.rows), strict=True):
        torch.testing.assert_close(values[: len(expected)], expected, rtol=1e-5, atol=1e-5)


def test_flex_attention_has_no_sliding_window(make_llava, caplog):
    family = make_llava(model_type="mistral", sliding_window=8)
    family.model.set_attn_implementation({"text_config": "flex_attention"})
    warn_once.cache_clear()
    assert not shares_prefix(family.model)
    assert "FlexAttention does not support the mask of its layers here; load the model with 'sdpa'" in caplog.text


def test_eager_attention_takes_the_plain_path(make_llava, caplog):
    family = make_llava()
    family.model.set_attn_implementation("eager")
    warn_once.cache_clear()
    assert not shares_prefix(family.model)
    assert "'eager' does not support this mask" in caplog.text
