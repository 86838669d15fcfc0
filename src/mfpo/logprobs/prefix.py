"""Several answers to one prompt in one pass: the prompt with its images runs once, not once an answer.

A row is [prompt | answer | answer ...]. Every answer's positions go on from the prompt's, and no answer sees another
one, so that each gets the log-probabilities that it gets behind the prompt alone. The language model's head, which is
as wide as the vocabulary, runs on nothing but the states that predict an answer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from mfpo.errors import warn_once
from mfpo.logprobs.attention import BY_DOCUMENT, lengths_of, with_images
from mfpo.models import rope_index_of

# What processors give per token, not per image: an answer's tokens are text, which is type 0 in both.
TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")

# What a batch of `logprobs.collate` holds beside the features of the prompt, which go to the model as they are.
_BY_TOKEN = ("input_ids", "position_ids", "documents", "answer_numbers")
LAYOUT = (*_BY_TOKEN, "answer_ids", "answer_mask", "answer_weights", "predictors")

# Model families whose forward pass hands a mask and positions made by us down to the language model, and whose
# attention is causal, over images too but for those of `_both_ways`.
_FAMILIES = (
    "aria",
    "aya_vision",
    "deepseek_vl",
    "gemma3",
    "gemma4",
    "glm46v",
    "glm4v",
    "glm4v_moe",
    "glm_ocr",
    "idefics2",
    "idefics3",
    "internvl",
    "janus",
    "llava",
    "llava_next",
    "llava_onevision",
    "mistral3",
    "ovis2",
    "paddleocr_vl",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
    "video_llama_3",
    "vipllava",
)

# The language models in them; others may mix tokens by more than attention (as recurrent layers do) or scale logits.
_DECODERS = (
    "aria_text",
    "cohere2",
    "gemma",
    "gemma3_text",
    "gemma4_text",
    "glm4v_moe_text",
    "glm4v_text",
    "glm_ocr_text",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "paddleocr_vl_text",
    "phi3",
    "qwen2",
    "qwen2_5_vl_text",
    "qwen2_vl_text",
    "qwen3",
    "qwen3_moe",
    "qwen3_vl_moe_text",
    "qwen3_vl_text",
)

# From what makes logits of states, the states that predict the answers' tokens, (tokens, width), and those tokens,
# (tokens,), to something for each token, (tokens, ...).
Score = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]

# (row, head, query, key) -> whether the query sees the key; tensors that broadcast.
MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def shares_prefix(model: Any) -> bool:
    """Whether `shared_scores` is exact for the model; if not, the log says why, once for each reason."""
    config = extract_model_from_parallel(model).config
    text = config.get_text_config()
    if config.model_type not in _FAMILIES:
        reason = f"a {config.model_type!r} model is not known to support shared prompts"
    elif text.model_type not in _DECODERS:
        reason = f"its language model, {text.model_type!r}, is not known to support shared prompts"
    elif text._attn_implementation == "flex_attention" and not can_flex(config):
        reason = "FlexAttention does not support the mask of its layers here; load the model with 'sdpa'"
    elif text._attn_implementation not in ("sdpa", BY_DOCUMENT, "flex_attention"):
        reason = f"attention {text._attn_implementation!r} does not support this mask; load the model with 'sdpa'"
    else:
        return True
    warn_once(f"prompts run once for each answer, which is slower: {reason}")
    return False


def can_flex(config: Any) -> bool:
    """Whether `block_mask` is the model's mask: no sliding window, and no image whose tokens see each other."""
    return getattr(config.get_text_config(), "sliding_window", None) is None and not _both_ways(config)


def _both_ways(config: Any) -> tuple[str, ...]:
    """The kinds of layers in which the tokens of an image see each other both ways."""
    if config.model_type == "gemma3":
        return ("full_attention", "sliding_attention")
    is_gemma4 = config.model_type == "gemma4" and config.get_text_config().use_bidirectional_attention == "vision"
    return ("sliding_attention",) if is_gemma4 else ()


def shared_scores(model: Any, batch: dict[str, Tensor], score: Score) -> Tensor:
    """`score` of all answer tokens, (tokens, ...), of a batch made by `logprobs.collate`."""
    bare = extract_model_from_parallel(model)
    batch = on_device(bare, batch)
    batch = pack(batch | {"position_ids": positions(bare, batch)})
    if bare.config.get_text_config()._attn_implementation == "flex_attention":
        return scores_under_mask(model, batch, block_mask(batch), score)
    if bare.config.get_text_config()._attn_implementation != BY_DOCUMENT:
        # For good, as checkpointing computes layers again later. Without documents it is sdpa.
        bare.set_attn_implementation({"text_config": BY_DOCUMENT})
    return scores_under_mask(model, batch, _document_mask(bare.config, batch), score)


def _document_mask(config: Any, batch: dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
    """The mask of a packed batch for `attend_by_document`, by the kind of layer where these differ."""
    lengths, types = lengths_of(batch), [batch[name] for name in TOKEN_TYPES if name in batch]
    if not types or not (both_ways := _both_ways(config)):
        return lengths
    images = with_images(lengths, batch, types[0])
    return {kind: images if kind in both_ways else lengths for kind in ("full_attention", "sliding_attention")}


def on_device(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch where the model is, and its features in the model's precision, as some models take no other."""
    bare = extract_model_from_parallel(model)
    moved = {name: value.to(bare.device) for name, value in batch.items()}
    return {
        name: value.to(bare.dtype) if value.is_floating_point() and name not in LAYOUT else value
        for name, value in moved.items()
    }


def positions(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The batch's positions as the model counts them, (rows, length), or (3, rows, length) for multimodal rope.

    Multimodal rope gives an image's tokens time, height and width, so that a text behind it starts earlier.
    """
    text_positions = batch["position_ids"]
    rope_index = rope_index_of(model)
    if rope_index is None or "mm_token_type_ids" not in batch:
        return text_positions
    is_prompt = (batch["answer_numbers"] == 0) & (batch["documents"] >= 0)
    in_prompt, offset = rope_index(
        input_ids=batch["input_ids"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        image_grid_thw=batch["image_grid_thw"],
        attention_mask=is_prompt,
    )
    return torch.where(is_prompt, in_prompt, text_positions + offset)


def pack(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with all its rows one behind the other in a single row, without padding."""
    is_token = batch["documents"] >= 0
    by_token = {*_BY_TOKEN, *TOKEN_TYPES} & batch.keys()
    packed = {name: batch[name][..., is_token].unsqueeze(-2) for name in by_token}
    return batch | packed | {"predictors": (is_token.flatten().cumsum(0) - 1)[batch["predictors"]]}


def mask_rule(batch: dict[str, Tensor]) -> MaskRule:
    """A token sees itself and what is before it in its document: the prompt, and its own answer."""
    documents, answers = batch["documents"], batch["answer_numbers"]

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_before = (key <= query) & (documents[row, key] == documents[row, query])
        return is_before & ((answers[row, key] == 0) | (answers[row, key] == answers[row, query]))

    return sees


def block_mask(batch: dict[str, Tensor]) -> BlockMask:
    """The rule for FlexAttention, which skips what no token sees."""
    rows, length = batch["documents"].shape
    device = batch["documents"].device
    # Compiled, the rule is evaluated block by block; else it would be written out for all pairs of tokens.
    return create_block_mask(
        mask_rule(batch), rows, None, length, length, device=device, _compile=device.type == "cuda"
    )


def scores_under_mask(
    model: Any, batch: dict[str, Tensor], attention_mask: Tensor | dict[str, Tensor] | BlockMask, score: Score
) -> Tensor:
    """`score` of all answer tokens, (tokens, ...), from one forward pass.

    All is done within the one call of the model, which is what DDP, FSDP, DeepSpeed and autocast are built around.
    """
    bare = extract_model_from_parallel(model)
    head, tower = bare.get_output_embeddings(), bare.get_encoder(modality="image")
    places, ids = (batch[name][batch["answer_mask"]] for name in ("predictors", "answer_ids"))
    text = bare.config.get_text_config()
    # Gemma 4 caps logits behind the head, where our log-probabilities come out.
    cap = text.final_logit_softcapping if bare.config.model_type == "gemma4" else None
    project = head.forward if cap is None else _capped(head.forward, cap)

    def at_answers(states: Tensor) -> Tensor:
        return score(project, states.flatten(0, 1)[places], ids)

    # With LoRA and checkpointing, transformers makes all embeddings require gradients, those of a frozen tower too.
    is_frozen = not any(weight.requires_grad for weight in tower.parameters())
    encode = torch.no_grad()(tower.forward) if is_frozen else tower.forward
    inputs = {name: value for name, value in batch.items() if name not in LAYOUT}
    inputs |= {name: batch[name] for name in ("input_ids", "position_ids")}
    uncapped = nullcontext() if cap is None else _replaced(text, "final_logit_softcapping", None)
    with _replaced(head, "forward", at_answers), _replaced(tower, "forward", encode), uncapped:
        return model(**inputs, attention_mask=attention_mask, use_cache=False).logits


def _capped(project: Callable[[Tensor], Tensor], cap: float) -> Callable[[Tensor], Tensor]:
    return lambda states: torch.tanh(project(states) / cap) * cap


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let `owner` have another attribute for a while; a module, another `forward`."""
    # What accelerate and LoRA leave there; else it is the class's.
    before = {key: attribute for key, attribute in vars(owner).items() if key == name}
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        vars(owner).update(before)
