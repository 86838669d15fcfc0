"""Tiny models of the kinds that lay out their pixels differently, and questions for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mfpo.models import load_model
from mfpo.processors import load_processor

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CLIP = {**SHAPE, "image_size": 32, "patch_size": 8, "projection_dim": 32}


def _text(processor: Any, **rope: Any) -> dict[str, Any]:
    # Large random weights, so that answers depend on image and words.
    specials = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return (
        SHAPE
        | specials
        | {"num_key_value_heads": 4, "vocab_size": len(processor.tokenizer), "initializer_range": 0.2}
        | rope
    )


def _llava_next(like: Any) -> tuple[Any, Any]:
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    tiles = [[32, 64], [64, 32], [64, 64]]
    rule = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    images = transformers.LlavaNextImageProcessorPil(**crop, image_grid_pinpoints=tiles)
    processor = transformers.LlavaNextProcessor(images, like.tokenizer, chat_template=like.chat_template, **rule)
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**CLIP),
        text_config=transformers.LlamaConfig(**_text(like)),
        image_token_index=like.image_token_id,
        vision_feature_layer=-1,
        image_grid_pinpoints=tiles,
    )
    return transformers.LlavaNextForConditionalGeneration(config), processor


class _Pictures(transformers.Qwen2_5_VLProcessor):
    """Without its part for videos, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def _qwen2_5_vl(like: Any) -> tuple[Any, Any]:
    images = transformers.Qwen2VLImageProcessorPil(patch_size=4, min_pixels=16 * 16, max_pixels=40 * 40)
    processor = _Pictures(images, like.tokenizer, chat_template=like.chat_template)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 100.0}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4}
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision | {"out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]},
        text_config=_text(like, rope_parameters=rope),
        image_token_id=like.image_token_id,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_5(like: Any) -> tuple[Any, Any]:
    """Of linear attention and full attention in turn."""
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 100.0}
    linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
    linear |= {"linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4}
    config = transformers.Qwen3_5Config(
        vision_config=vision | {"out_hidden_size": 32, "num_position_embeddings": 64},
        text_config=_text(like, rope_parameters=rope | {"partial_rotary_factor": 1.0}) | linear,
        image_token_id=like.image_token_id,
    )
    return transformers.Qwen3_5ForConditionalGeneration(config), _qwen2_5_vl(like)[1]


MAKERS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "llava_next": _llava_next,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_5": _qwen3_5,
}


@pytest.fixture(scope="session")
def make(tiny_llava: Path) -> Callable[[str], tuple[Any, Any]]:
    """Makes a random model and its processor by name."""

    def make(name: str) -> tuple[Any, Any]:
        if name == "llava":
            return load_model(tiny_llava), load_processor(tiny_llava)
        torch.manual_seed(0)
        model, processor = MAKERS[name](load_processor(tiny_llava))
        model.generation_config.eos_token_id = 2
        model.generation_config.pad_token_id = 0
        return model.eval(), processor

    return make


@pytest.fixture(scope="session")
def rows() -> list[dict[str, str]]:
    """Questions of different lengths."""
    texts = ["What is it?", "Is there a dog in the image?", "Tell me all that you see.", "Why?", "Describe it."]
    return [{"question_id": f"q{number}", "text": text} for number, text in enumerate(texts)]


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """An image a question, of different shapes."""
    random = np.random.default_rng(0)
    sizes = [(32, 32), (24, 40), (40, 24), (64, 64), (32, 16)]
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
