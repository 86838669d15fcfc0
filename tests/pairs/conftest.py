"""A tiny detector, and a model whose answers are given."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_owlv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random OWLv2 of two layers, and CLIP's tokenizer without merges."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessorPil

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": 514, "max_position_embeddings": 24, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**small, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=32))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], pad_token="!")
    folder = tmp_path_factory.mktemp("owlv2")
    for part in (model, Owlv2ImageProcessorPil(size={"height": 32, "width": 32}), tokenizer):
        part.save_pretrained(folder)
    return folder
