"""What all tests share."""

import gc
import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Fixtures that the tests of several folders take.
pytest_plugins = ("fixtures.families", "fixtures.endpoints", "fixtures.broken")

# A shell that runs the tests in the background has them ignore Ctrl-C, and what they start too.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Where the tests take the longest. Workers take file after file: a long one at the end would leave the others idle.
LONG = (
    "tests/test_docs.py",
    "tests/study",
    "tests/train",
    "tests/test_demo.py",
    "tests/test_adapters.py",
    "tests/build",
    "tests/picturebook",
    "tests/test_gpu_benchmark.py",
    "tests/report/test_browser.py",
    "tests/evaluate/test_object_halbench.py",
    "tests/cli",
    "tests/rank",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; with `--no-loadscope-reorder`, as in the Makefile, the workers keep to it."""
    items.sort(key=lambda item: next((n for n, long in enumerate(LONG) if item.nodeid.startswith(long)), len(LONG)))


@pytest.fixture(scope="module", autouse=True)
def frozen_imports() -> None:
    """The garbage collector, which a training calls twice a stage, need not look through all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of public reference data; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("MFPO_REFERENCE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set MFPO_REFERENCE_DATA to its folder")
    return folder


CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %} {% else %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random LLaVA of 0.1 M parameters (32x32 pixels, 16 image tokens, one token a byte)."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    specials = ["<pad>", "<s>", "</s>", "<image>"]
    tokens = specials + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    # Heads of 16, the narrowest that FlexAttention takes on a GPU.
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape, image_size=32, patch_size=8, projection_dim=32),
        # Large random weights, so that tests see each image and each word in the log-probabilities.
        text_config=LlamaConfig(**shape, vocab_size=len(tokens), initializer_range=0.2, tie_word_embeddings=False),
        image_token_index=tokens.index("<image>"),
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny_llava")
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def preference_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 14 records in two shards, as `mfpo build` writes them; the rejected images are noise."""
    import numpy as np
    from PIL import Image

    from mfpo.images import encode_image
    from mfpo.records import new_record
    from mfpo.shards import write_shard

    random = np.random.default_rng(0)
    words = ["dog", "cat", "bench", "boat", "kite", "cup", "a red car", "an old clock"]

    def picture() -> Image.Image:
        return Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8))

    records = []
    for i in range(14):
        chosen = ", ".join(random.choice(words, 1 + i % 4))
        source = new_record(
            id=f"r{i:02}",
            images=[encode_image(picture())],
            question="What is there?",
            chosen=f"I see {chosen}.",
            rejected=f"I see {chosen} and a {words[i % 5]}!",
            source={"dataset": "test", "row": i},
        )
        corruption = {"kind": "region", "schedule": "sigmoid", "step": 500, "seed": 0, "fallback": True}
        rejected_images = [encode_image(picture())]
        records.append(dict(source, rejected_images=rejected_images, keywords=[], regions=[], corruption=corruption))
    folder = tmp_path_factory.mktemp("preference_data")
    write_shard(records[:8], folder / "data-00000.parquet")
    write_shard(records[8:], folder / "data-00001.parquet")
    return folder
