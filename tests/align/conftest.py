"""A tiny random model of each family that shares prefixes, and its prompts as its own processor makes them.

Qwen's and SmolVLM's processors do not load here: they need a video processor, which needs torchvision, and num2words.
Qwen's image tokens are put in place as `Qwen2_5_VLProcessor` does; Idefics3's processor, of which SmolVLM's is a
superset, stands in for the latter, with SmolVLM's own image processor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from mfpo.align.logprobs import Encoded
from mfpo.align.preference_trainer import PreferenceTrainer
from mfpo.align.stage import StageRecords
from mfpo.align.train_settings import TrainSettings
from mfpo.align.trainer import open_pairs
from mfpo.models import load_model, load_processor
from mfpo.records import read_dataset

_TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
_SPECIALS = ["<pad>", "<s>", "</s>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
_TOKENS = [*_SPECIALS, *_TILES, *sorted(pre_tokenizers.ByteLevel.alphabet())]
_IMAGE = _TOKENS.index("<image>")

# Heads of 16, the narrowest that FlexAttention takes on a GPU.
_SHAPE = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
# Large random weights, so that each image and each word shows in the log-probabilities.
_TEXT = {**_SHAPE, "num_key_value_heads": 2, "vocab_size": len(_TOKENS), "initializer_range": 0.2}
_TEXT |= {"tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_CLIP = {**_SHAPE, "image_size": 32, "patch_size": 8, "projection_dim": 64}

# The images and the text of a prompt -> its tokens, (length,), and its features.
Prompt = Callable[[Sequence[Image.Image], str], tuple[Tensor, dict[str, Tensor]]]


def picture(seed: int, *, width: int = 48, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ragged_rows(prompt: Prompt) -> list[Encoded]:
    """Prompts with one and two images and of several lengths; one-token answers, identical ones, one alone, three."""
    random = np.random.default_rng(0)

    def words(count: int) -> Tensor:
        return torch.tensor(random.integers(len(_TOKENS) - 256, len(_TOKENS), count))

    same = words(4)
    pictures_texts_answers = [
        ([picture(0)], "What?", (words(5), words(9))),
        ([picture(1), picture(2, width=32, height=72)], "Compare these.", (words(1), words(3))),
        ([picture(3, width=72)], "What?", (words(7),)),
        ([picture(4, width=40, height=56)], "Say it", (same, same, words(1))),
    ]
    rows = []
    for pictures, text, answers in pictures_texts_answers:
        ids, features = prompt(pictures, text)
        rows.append(Encoded(ids, answers, features, cut=(0,) * len(answers)))
    return rows


def _through(processor: Any) -> Prompt:
    def prompt(images: Sequence[Image.Image], text: str) -> tuple[Tensor, dict[str, Tensor]]:
        inputs = processor(text=["<image>" * len(images) + text], images=[list(images)], return_tensors="pt")
        inputs.pop("attention_mask")
        return inputs.pop("input_ids")[0], dict(inputs)

    return prompt


def _tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(_TOKENS)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=[*_SPECIALS[3:], *_TILES],
        extra_special_tokens={"image_token": "<image>"},
    )


def llava(**text: Any) -> tuple[Any, Prompt]:
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    rule = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_CLIP),
        text_config=transformers.AutoConfig.for_model(**{"model_type": "llama", **_TEXT, **text}),
        image_token_index=_IMAGE,
        vision_feature_layer=-1,
    )
    processor = transformers.LlavaProcessor(transformers.CLIPImageProcessorPil(**crop), _tokenizer(), **rule)
    return transformers.LlavaForConditionalGeneration(config), _through(processor)


def llava_next() -> tuple[Any, Prompt]:
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    tiles = [[32, 64], [64, 32], [64, 64]]
    rule = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**_CLIP),
        text_config=transformers.MistralConfig(**_TEXT, sliding_window=None),
        image_token_index=_IMAGE,
        vision_feature_layer=-1,
        image_grid_pinpoints=tiles,
    )
    images = transformers.LlavaNextImageProcessorPil(**crop, image_grid_pinpoints=tiles)
    processor = transformers.LlavaNextProcessor(images, _tokenizer(), **rule)
    return transformers.LlavaNextForConditionalGeneration(config), _through(processor)


def _qwen(model: Any) -> tuple[Any, Prompt]:
    processor = transformers.Qwen2VLImageProcessorPil(patch_size=4, min_pixels=16 * 16, max_pixels=40 * 40)
    tokenizer = _tokenizer()

    def prompt(images: Sequence[Image.Image], text: str) -> tuple[Tensor, dict[str, Tensor]]:
        features = dict(processor(images=list(images), return_tensors="pt"))
        counts = (features["image_grid_thw"].prod(dim=1) // processor.merge_size**2).tolist()
        shown = "".join("see: " + "<image>" * count for count in counts)
        ids = torch.tensor(tokenizer(shown + text)["input_ids"])
        return ids, features | {"mm_token_type_ids": (ids == _IMAGE).long()[None]}

    return model, prompt


def qwen2_5_vl() -> tuple[Any, Prompt]:
    rope = {"rope_type": "default", "mrope_section": [2, 2, 4], "rope_theta": 100.0}
    config = transformers.Qwen2_5_VLConfig(
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4}
        | {"out_hidden_size": 64, "window_size": 16, "fullatt_block_indexes": [1]},
        text_config=_TEXT | {"rope_parameters": rope},
        image_token_id=_IMAGE,
    )
    return _qwen(transformers.Qwen2_5_VLForConditionalGeneration(config))


def qwen3_vl() -> tuple[Any, Prompt]:
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True, "rope_theta": 100.0}
    config = transformers.Qwen3VLConfig(
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4}
        | {"out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        text_config=_TEXT | {"head_dim": 16, "rope_parameters": rope},
        image_token_id=_IMAGE,
    )
    return _qwen(transformers.Qwen3VLForConditionalGeneration(config))


def _idefics3(name: str) -> tuple[Any, Prompt]:
    config = getattr(transformers, f"{name}Config")(
        vision_config=_SHAPE | {"image_size": 32, "patch_size": 8},
        text_config={"model_type": "llama", **_TEXT},
        image_token_id=_IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    images = getattr(transformers, f"{name}ImageProcessorPil")(**sizes)
    processor = transformers.Idefics3Processor(images, _tokenizer(), image_seq_len=4)
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), _through(processor)


FAMILIES: dict[str, Callable[[], tuple[Any, Prompt]]] = {
    "llava": llava,
    "llava_next": llava_next,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "idefics3": lambda: _idefics3("Idefics3"),
    "smolvlm": lambda: _idefics3("SmolVLM"),
}


@dataclass(frozen=True)
class Family:
    name: str
    model: Any
    prompt: Prompt
    rows: list[Encoded]


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    torch.manual_seed(0)
    model, prompt = FAMILIES[request.param]()
    return Family(request.param, model.eval(), prompt, ragged_rows(prompt))


@pytest.fixture
def make_llava() -> Callable[..., Family]:
    """A LLaVA whose language model is made with other settings."""

    def make(**text: Any) -> Family:
        torch.manual_seed(0)
        model, prompt = llava(**text)
        return Family("llava", model.eval(), prompt, ragged_rows(prompt))

    return make


@pytest.fixture
def open_trainer(tiny_llava: Path, tmp_path: Path) -> Callable[..., PreferenceTrainer]:
    """A trainer of the tiny LLaVA on records 3 and 5 of a dataset, with a reference of our own."""

    def open_it(
        data: Path, settings: TrainSettings, reference: Tensor, *, frozen: Any = None, attention: str = "sdpa"
    ) -> PreferenceTrainer:
        model = load_model(tiny_llava)
        model.set_attn_implementation(attention)
        pairs = open_pairs(read_dataset(data), load_processor(tiny_llava), settings)
        return PreferenceTrainer(
            model=model,
            args=transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
            records=StageRecords(pairs, [3, 5]),
            reference=reference,
            settings=settings,
            write=lambda metrics, step: None,
            end_ids=torch.tensor([2]),
            frozen=frozen,
        )

    return open_it
