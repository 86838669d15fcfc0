"""LISA's regions on a tiny random LISA in the published layout, against SAM and LISA's own arithmetic spelt out."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    LlamaTokenizer,
)

from mfpo.build.regions import Search
from mfpo.build.regions.lisa import Lisa, LisaRegions, load_lisa, rename
from mfpo.build.settings import RegionSettings
from mfpo.errors import MfpoError, RecordError
from mfpo.masks import decode_mask
from mfpo.records import EncodedImage, Keyword, Origin, new_record

WIDTH, GRID, SIDE, HEADS = 32, 4, 64, 4
PATCHES = 4  # of CLIP

# The keys of xinlai/LISA-7B-v1's config.json, with small numbers.
CONFIG = {
    "architectures": ["LISAForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "freeze_mm_mlp_adapter": True,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "image_aspect_ratio": "square",
    "image_grid_pinpoints": None,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "max_position_embeddings": 2048,
    "mm_hidden_size": 24,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": True,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14",
    "model_type": "llava",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "out_dim": 256,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "train_mask_decoder": True,
    "transformers_version": "4.31.0",
    "use_cache": False,
    "use_mm_proj": True,
    "vocab_size": 358,
}


def published_shapes() -> dict[str, tuple[int, ...]]:
    """The names in LISA's files, written down from its modules, and small shapes."""
    shapes: dict[str, tuple[int, ...]] = {"lm_head.weight": (358, WIDTH), "model.embed_tokens.weight": (358, WIDTH)}

    def both(name: str, *shape: int, bias: int | None = None) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = (shape[0] if bias is None else bias,)

    for i in range(2):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (64, WIDTH) for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (WIDTH, 64)
        shapes |= {f"{layer}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
        shapes[f"{layer}.self_attn.rotary_emb.inv_freq"] = (4,)
    shapes["model.norm.weight"] = (WIDTH,)
    both("model.mm_projector", WIDTH, 24)
    both("model.text_hidden_fcs.0.0", WIDTH, WIDTH)
    both("model.text_hidden_fcs.0.2", 256, WIDTH)

    encoder, prompt, decoder = (
        f"model.visual_model.{part}" for part in ("image_encoder", "prompt_encoder", "mask_decoder")
    )
    shapes[f"{encoder}.pos_embed"] = (1, GRID, GRID, WIDTH)
    both(f"{encoder}.patch_embed.proj", WIDTH, 3, 16, 16)
    for i, reach in enumerate((27, 2 * GRID - 1)):  # windows of 14 patches, then the whole image
        block = f"{encoder}.blocks.{i}"
        both(f"{block}.norm1", WIDTH)
        both(f"{block}.norm2", WIDTH)
        both(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        both(f"{block}.attn.proj", WIDTH, WIDTH)
        shapes |= {f"{block}.attn.rel_pos_{axis}": (reach, WIDTH // HEADS) for axis in "hw"}
        both(f"{block}.mlp.lin1", 4 * WIDTH, WIDTH)
        both(f"{block}.mlp.lin2", WIDTH, 4 * WIDTH)
    shapes |= {f"{encoder}.neck.0.weight": (256, WIDTH, 1, 1), f"{encoder}.neck.2.weight": (256, 256, 3, 3)}
    both(f"{encoder}.neck.1", 256)
    both(f"{encoder}.neck.3", 256)

    shapes[f"{prompt}.pe_layer.positional_encoding_gaussian_matrix"] = (2, 128)
    shapes |= {f"{prompt}.point_embeddings.{i}.weight": (1, 256) for i in range(4)}
    shapes |= {f"{prompt}.{name}_embed.weight": (1, 256) for name in ("not_a_point", "no_mask")}
    both(f"{prompt}.mask_downscaling.0", 4, 1, 2, 2)
    both(f"{prompt}.mask_downscaling.1", 4)
    both(f"{prompt}.mask_downscaling.3", 16, 4, 2, 2)
    both(f"{prompt}.mask_downscaling.4", 16)
    both(f"{prompt}.mask_downscaling.6", 256, 16, 1, 1)

    def attention(name: str, inner: int) -> None:
        for part in "qkv":
            both(f"{name}.{part}_proj", inner, 256)
        both(f"{name}.out_proj", 256, inner)

    shapes |= {f"{decoder}.iou_token.weight": (1, 256), f"{decoder}.mask_tokens.weight": (4, 256)}
    for i in range(2):
        layer = f"{decoder}.transformer.layers.{i}"
        attention(f"{layer}.self_attn", 256)
        attention(f"{layer}.cross_attn_token_to_image", 128)
        attention(f"{layer}.cross_attn_image_to_token", 128)
        for norm in range(1, 5):
            both(f"{layer}.norm{norm}", 256)
        both(f"{layer}.mlp.lin1", 2048, 256)
        both(f"{layer}.mlp.lin2", 256, 2048)
    attention(f"{decoder}.transformer.final_attn_token_to_image", 128)
    both(f"{decoder}.transformer.norm_final_attn", 256)
    both(f"{decoder}.output_upscaling.0", 256, 64, 2, 2, bias=64)
    both(f"{decoder}.output_upscaling.1", 64)
    both(f"{decoder}.output_upscaling.3", 64, 32, 2, 2, bias=32)
    heads = [(f"output_hypernetworks_mlps.{i}", 32) for i in range(4)] + [("iou_prediction_head", 4)]
    for head, outputs in heads:
        for i, size in enumerate((256, 256, outputs)):
            both(f"{decoder}.{head}.layers.{i}", size, 256)
    return shapes


def random_weights() -> dict[str, Tensor]:
    """As large as what they multiply allows, so that every weight moves the masks; norms around 1."""
    random = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in published_shapes().items():
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 16
        values = torch.randn(shape, generator=random) / fan_in**0.5
        is_norm = name.endswith("norm.weight") or re.search(r"norm\d?(_final_attn)?\.weight|neck\.[13]\.weight", name)
        weights[name] = (
            values + 1 if is_norm or re.search(r"(upscaling\.1|downscaling\.[14])\.weight", name) else values
        )
    weights["model.visual_model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] *= 5
    return weights


@pytest.fixture(scope="module")
def lisa_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random LISA as published but in safetensors, and the CLIP that it names in `clip`."""
    folder = tmp_path_factory.mktemp("lisa")
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = {**shape, "image_size": 28, "patch_size": 14, "initializer_factor": 5.0}
    text = {**shape, "vocab_size": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text)).save_pretrained(folder / "clip")
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    CLIPImageProcessorPil(**size).save_pretrained(folder / "clip")

    characters = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    tokenizer = LlamaTokenizer(vocab={token: i for i, token in enumerate(characters)}, merges=[])
    tokenizer.add_tokens(["<im_patch>", "<im_start>", "<im_end>"], special_tokens=True)
    tokenizer.add_tokens("[SEG]")
    tokenizer.save_pretrained(folder)

    weights = random_weights()
    names = sorted(weights)
    save_file({name: weights[name] for name in names[::2]}, folder / "model-00001-of-00002.safetensors")
    save_file({name: weights[name] for name in names[1::2]}, folder / "model-00002-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vision_tower": str(folder / "clip")}))
    return folder


@pytest.fixture(scope="module")
def lisa(lisa_folder: Path) -> Lisa:
    return load_lisa(lisa_folder)[0]


@pytest.fixture(scope="module")
def regions(lisa_folder: Path) -> LisaRegions:
    return LisaRegions(str(lisa_folder), RegionSettings(smallest_region=0, largest_region=1))


def search(*keywords: str, height: int = 50, width: int = 70, number: int = 0, seed: int = 0) -> Search:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    record = new_record(
        id="r",
        images=[EncodedImage(bytes=b"", path=None)],
        question="What is there?",
        chosen="A dog.",
        rejected="A cat.",
        source=Origin(dataset="test", row=0),
    )
    return Search(record, number, pixels, [Keyword(text=text, score=1.0) for text in keywords])


def test_each_weight_is_used_once_and_each_of_the_model_is_filled(lisa: Lisa) -> None:
    used = {rename(name): weight for name, weight in random_weights().items() if rename(name)}
    left = {name for name in random_weights() if not rename(name)}
    assert left == {"lm_head.weight", *(f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(2))}
    assert len(used) == len(random_weights()) - len(left)
    own = {name: weight for name, weight in lisa.named_parameters() if not name.startswith("tower.")}
    assert own.keys() == used.keys()
    for name, weight in used.items():
        torch.testing.assert_close(own[name].cpu(), weight.to(own[name].dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), "1 weights are missing, such as norm.weight"),
        (
            lambda w: w.pop("model.visual_model.mask_decoder.iou_token.weight"),
            "missing, such as mask_decoder.iou_token",
        ),
        (lambda w: w.pop("model.mm_projector.bias"), "do not fit LISA .*bias"),
        (lambda w: w.pop("model.visual_model.image_encoder.pos_embed"), "weights of 'vision_encoder.pos_embed' are"),
        (
            lambda w: [w.pop(n) for n in list(w) if "rel_pos" in n],
            "weights of 'vision_encoder.layers.0.attn.rel_pos_h'",
        ),
        (lambda w: w.update({"model.text_hidden_fcs.1.0.bias": torch.zeros(2)}), "has no weight model.text_hidden_fcs"),
        (lambda w: w.update({"model.visual_model.foo": torch.zeros(2)}), "1 weights are not LISA's, such as foo"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(2)}), "1 weights are of another shape, such as .*norm"),
        (lambda w: w.update({"model.text_hidden_fcs.0.2.bias": torch.zeros(2)}), "do not fit LISA .*size mismatch"),
    ],
)
def test_missing_superfluous_and_misshaped_weights_are_refused(
    change: Callable[[dict[str, Tensor]], object], message: str, lisa_folder: Path, tmp_path: Path
) -> None:
    weights = random_weights()
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    shutil.copy(lisa_folder / "config.json", tmp_path)
    with pytest.raises(MfpoError, match=message) as caught:
        load_lisa(tmp_path)
    assert "\n" not in str(caught.value)


def plain_attention(weights: dict[str, Tensor], name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """SAM's decoder attention with 8 heads over (tokens, width)."""
    q, k, v = (
        F.linear(x, weights[f"{name}.{p}_proj.weight"], weights[f"{name}.{p}_proj.bias"])
        for p, x in zip("qkv", (query, key, value), strict=True)
    )
    heads = []
    for part in torch.arange(q.shape[1]).chunk(8):
        scores = q[:, part] @ k[:, part].T / len(part) ** 0.5
        heads.append(scores.softmax(-1) @ v[:, part])
    return F.linear(torch.cat(heads, 1), weights[f"{name}.out_proj.weight"], weights[f"{name}.out_proj.bias"])


def plain_norm(weights: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    """Layer normalisation over the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def plain_linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def plain_image_encoder(weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """SAM's ViT by its original names: (3, 64, 64) to (256, 4, 4)."""
    at = "model.visual_model.image_encoder"
    proj = f"{at}.patch_embed.proj"
    x = F.conv2d(pixels[None], weights[f"{proj}.weight"], weights[f"{proj}.bias"], stride=16)[0].permute(1, 2, 0)
    x = x + weights[f"{at}.pos_embed"][0]
    for block, side in ((f"{at}.blocks.0", 14), (f"{at}.blocks.1", GRID)):
        # The window is larger than the image, which zeros fill up on the right and below.
        window = torch.zeros(side, side, WIDTH, dtype=x.dtype)
        window[:GRID, :GRID] = plain_norm(weights, f"{block}.norm1", x, 1e-6)
        qkv = plain_linear(weights, f"{block}.attn.qkv", window.reshape(side * side, WIDTH))
        row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
        heads = []
        for part in torch.arange(WIDTH).chunk(HEADS):
            q, k, v = qkv[:, part], qkv[:, WIDTH + part], qkv[:, 2 * WIDTH + part]
            scores = q @ k.T / len(part) ** 0.5
            for axis, place in (("h", row), ("w", column)):
                distance = place[:, None] - place[None] + side - 1
                scores = scores + (q[:, None] * weights[f"{block}.attn.rel_pos_{axis}"][distance]).sum(-1)
            heads.append(scores.softmax(-1) @ v)
        attended = plain_linear(weights, f"{block}.attn.proj", torch.cat(heads, 1))
        x = x + attended.reshape(side, side, WIDTH)[:GRID, :GRID]
        hidden = F.gelu(plain_linear(weights, f"{block}.mlp.lin1", plain_norm(weights, f"{block}.norm2", x, 1e-6)))
        x = x + plain_linear(weights, f"{block}.mlp.lin2", hidden)
    x = F.conv2d(x.permute(2, 0, 1)[None], weights[f"{at}.neck.0.weight"])
    x = plain_norm(weights, f"{at}.neck.1", x.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)
    x = F.conv2d(x, weights[f"{at}.neck.2.weight"], padding=1)
    return plain_norm(weights, f"{at}.neck.3", x.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)[0]


def plain_positions(weights: dict[str, Tensor]) -> Tensor:
    """The positions of the image's patches, (16, 256)."""
    gaussian = weights["model.visual_model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    centres = (torch.arange(GRID, dtype=gaussian.dtype) + 0.5) / GRID * 2 - 1
    points = torch.stack([centres.repeat(GRID), centres.repeat_interleave(GRID)], dim=1)  # x, then y
    angles = 2 * torch.pi * points @ gaussian
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def plain_mask(weights: dict[str, Tensor], pixels: Tensor, prompt: Tensor) -> Tensor:
    """The logits (16, 16) of SAM's first mask for a text prompt (256,), by SAM's original names."""
    at = "model.visual_model.mask_decoder"
    keys = plain_image_encoder(weights, pixels).flatten(1).T
    keys = keys + weights["model.visual_model.prompt_encoder.no_mask_embed.weight"]
    place = plain_positions(weights)
    tokens = torch.cat([weights[f"{at}.iou_token.weight"], weights[f"{at}.mask_tokens.weight"], prompt[None]])
    queries = tokens
    for i in range(2):
        layer = f"{at}.transformer.layers.{i}"
        with_place = queries + tokens if i else queries
        attended = plain_attention(weights, f"{layer}.self_attn", with_place, with_place, queries)
        queries = plain_norm(weights, f"{layer}.norm1", queries + attended if i else attended, 1e-5)
        name = f"{layer}.cross_attn_token_to_image"
        queries = queries + plain_attention(weights, name, queries + tokens, keys + place, keys)
        queries = plain_norm(weights, f"{layer}.norm2", queries, 1e-5)
        hidden = plain_linear(weights, f"{layer}.mlp.lin1", queries).relu()
        queries = plain_norm(
            weights, f"{layer}.norm3", queries + plain_linear(weights, f"{layer}.mlp.lin2", hidden), 1e-5
        )
        name = f"{layer}.cross_attn_image_to_token"
        keys = keys + plain_attention(weights, name, keys + place, queries + tokens, queries)
        keys = plain_norm(weights, f"{layer}.norm4", keys, 1e-5)
    name = f"{at}.transformer.final_attn_token_to_image"
    queries = queries + plain_attention(weights, name, queries + tokens, keys + place, keys)
    queries = plain_norm(weights, f"{at}.transformer.norm_final_attn", queries, 1e-5)
    up = f"{at}.output_upscaling"
    drawn = keys.T.reshape(1, 256, GRID, GRID)
    drawn = F.conv_transpose2d(drawn, weights[f"{up}.0.weight"], weights[f"{up}.0.bias"], stride=2)
    drawn = F.gelu(plain_norm(weights, f"{up}.1", drawn.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2))
    drawn = F.gelu(F.conv_transpose2d(drawn, weights[f"{up}.3.weight"], weights[f"{up}.3.bias"], stride=2))
    head = f"{at}.output_hypernetworks_mlps.0.layers"
    pen = plain_linear(weights, f"{head}.0", queries[1]).relu()
    pen = plain_linear(weights, f"{head}.2", plain_linear(weights, f"{head}.1", pen).relu())
    return (pen[:, None, None] * drawn[0]).sum(0)


@torch.no_grad()
def test_masks_are_those_of_sam_by_its_original_names(lisa_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In double precision, in which another epsilon of a norm shows too.
    monkeypatch.setattr("mfpo.build.regions.lisa.default_dtype", lambda: torch.float64)
    monkeypatch.setattr("mfpo.build.regions.lisa.device", lambda: torch.device("cpu"))
    lisa, _ = load_lisa(lisa_folder)
    weights = {name: weight.double() for name, weight in random_weights().items()}
    random = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=random, dtype=torch.float64)
    prompts = torch.randn(2, 256, generator=random, dtype=torch.float64)
    drawn = lisa.draw_masks(pixels, prompts)
    expected = torch.stack([plain_mask(weights, pixels[0], prompt) for prompt in prompts])
    assert expected.std() > 0.1
    assert (expected[0] - expected[1]).abs().mean() > 0.1
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-9)


def plain_prompt(folder: Path, pixels: Tensor, tokens: list[int], seg: int) -> Tensor:
    """LISA's own steps on `tokens` with one image at -200: the states after the norm, taken by its mask of [SEG]."""
    weights = random_weights()
    language = LlamaModel(LlamaConfig(**CONFIG)).eval()
    names = (r"model\.(embed_tokens|layers|norm)\.", r".*inv_freq")
    kept = {n[6:]: w for n, w in weights.items() if re.match(names[0], n) and not re.match(names[1], n)}
    language.load_state_dict(kept)
    tower = CLIPVisionModel.from_pretrained(folder / "clip").eval()
    features = tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
    image = plain_linear(weights, "model.mm_projector", features)
    at = tokens.index(-200)
    embed = weights["model.embed_tokens.weight"]
    inputs = torch.cat([embed[tokens[:at]], image, embed[tokens[at + 1 :]]])
    states = language(inputs_embeds=inputs[None]).last_hidden_state[0]
    hidden = plain_linear(weights, "model.text_hidden_fcs.0.0", states).relu()
    embeddings = plain_linear(weights, "model.text_hidden_fcs.0.2", hidden)
    is_seg = torch.tensor(tokens[1:]) == seg
    mask = torch.cat([torch.zeros(PATCHES - 1).bool(), is_seg, torch.zeros(1).bool()])  # 255 zeros for 256 patches
    [embedding] = embeddings[mask]
    return embedding


@torch.no_grad()
def test_a_prompt_is_the_state_that_lisas_mask_of_seg_picks(lisa: Lisa, lisa_folder: Path) -> None:
    seg, stop = 357, 14
    before, questions = [1, 300, 301, 355], [[356, 310, 311, 312, 313], [356, 320], [356, 310, 330, 312]]
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    found = lisa.read_prompts(pixels, before, questions)
    for question, embedding in zip(questions, found, strict=True):
        expected = plain_prompt(lisa_folder, pixels, [*before, -200, *question, seg, stop, 2], seg)
        torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-4)


def test_the_prompt_is_that_of_lisas_validation_without_spaces_at_its_markers(regions: LisaRegions) -> None:
    before, [after] = regions._encode(["Red Dog"])
    shared, question = ("".join(regions._tokenizer.convert_ids_to_tokens(ids)) for ids in (before, after))
    assert shared.startswith("<s>▁A▁chat▁between▁a▁curious▁human▁and")
    assert shared.endswith("▁USER:<im_start>")
    assert question == "<im_end>▁What▁is▁red▁dog▁in▁this▁image?▁Please▁output▁segmentation▁mask.▁ASSISTANT:"


@torch.no_grad()
def test_regions_are_the_plain_masks_at_the_images_size(regions: LisaRegions, lisa_folder: Path) -> None:
    looked = search("dog", "old clock", number=1)
    found = regions([looked])[0]
    assert not isinstance(found, RecordError)
    assert [region["keyword"] for region in found] == ["dog", "old clock"]
    assert {region["image"] for region in found} == {1}
    clip = CLIPImageProcessorPil.from_pretrained(lisa_folder / "clip")(looked.pixels, return_tensors="pt")
    before, questions = regions._encode(["dog", "old clock"])
    resized = regions._sam_processor.resize(
        looked.pixels.transpose(2, 0, 1), regions._sam_processor.size, regions._sam_processor.resample
    )
    assert resized.shape == (3, 46, 64)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    pixels = torch.zeros(3, SIDE, SIDE)
    pixels[:, :46] = (torch.tensor(resized) - mean[:, None, None]) / std[:, None, None]
    for region, question in zip(found, questions, strict=True):
        tokens = [*before, -200, *question, 357]
        prompt = plain_prompt(lisa_folder, clip["pixel_values"], tokens, 357)
        logits = plain_mask(random_weights(), pixels, prompt)[None, None]
        logits = F.interpolate(logits, (SIDE, SIDE), mode="bilinear")[:, :, :46]
        logits = F.interpolate(logits, (50, 70), mode="bilinear")[0, 0]
        inside = decode_mask(region["mask"])
        assert inside.shape == (50, 70)
        assert (inside != (logits > 0).numpy()).mean() < 0.001
        assert region["score"] == pytest.approx(logits[logits > 0].sigmoid().mean().item(), abs=1e-3)


def test_a_batch_gives_what_each_search_alone_gives(regions: LisaRegions) -> None:
    searches = [search("dog", "a cup of tea", "é"), search("cat", height=90, width=30, seed=1), search(), search("dog")]
    together = regions(searches)
    assert [len(found) for found in together if isinstance(found, list)] == [3, 1, 0, 1]
    for looked, found in zip(searches, together, strict=True):
        for keyword, region in zip(looked.keywords, found, strict=True):
            [[alone]] = regions([Search(looked.record, 0, looked.pixels, [keyword])])
            assert region["mask"]["size"] == list(looked.pixels.shape[:2])
            assert region["score"] == pytest.approx(alone["score"], abs=1e-4)
            assert (decode_mask(region["mask"]) != decode_mask(alone["mask"])).mean() < 0.001


def test_a_mask_outside_the_settings_shares_is_no_region(regions: LisaRegions, lisa_folder: Path) -> None:
    [[found]] = regions([search("dog")])
    share = decode_mask(found["mask"]).mean()
    smaller = LisaRegions(str(lisa_folder), RegionSettings(smallest_region=0, largest_region=share - 0.01))
    assert smaller([search("dog")]) == [[]]


def test_a_threshold_near_one_leaves_the_surest_pixels(regions: LisaRegions, lisa_folder: Path) -> None:
    [[found]] = regions([search("dog")])
    sure = RegionSettings(smallest_region=0, largest_region=1, mask_threshold=0.9)
    [[surer]] = LisaRegions(str(lisa_folder), sure)([search("dog")])
    assert not (decode_mask(surer["mask"]) & ~decode_mask(found["mask"])).any()
    assert found["score"] < surer["score"] <= 1


def test_bfloat16_as_on_a_gpu_draws_nearly_the_same(
    regions: LisaRegions, lisa_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [expected] = regions([search("dog", "cup")])
    for module in ("lisa", "vision"):
        monkeypatch.setattr(f"mfpo.build.regions.{module}.default_dtype", lambda: torch.bfloat16)
    rounding = LisaRegions(str(lisa_folder), RegionSettings(smallest_region=0, largest_region=1))
    # Positions of text need more than eight bits.
    assert rounding._lisa.language.rotary_emb.inv_freq.dtype == torch.float32
    assert {weight.dtype for weight in rounding._lisa.parameters()} == {torch.bfloat16}
    [found] = rounding([search("dog", "cup")])
    for exact, rounded in zip(expected, found, strict=True):
        assert (decode_mask(exact["mask"]) != decode_mask(rounded["mask"])).mean() < 0.1


def test_an_image_too_narrow_is_set_aside(regions: LisaRegions) -> None:
    narrow, [region] = regions([search("dog", height=2, width=500), search("dog", height=2, width=40)])
    assert isinstance(narrow, RecordError)
    assert region["mask"]["size"] == [2, 40]


def config_of(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no LISA there"),
        (lambda f: (f / "config.json").write_text("[1]"), "must give vision_tower, hidden_size"),
        (lambda f: (f / "config.json").write_text('{"model_type": "llava"}'), "must give vision_tower, hidden_size"),
        (lambda f: config_of(f, hidden_size="wide"), "must give vision_tower"),
        (lambda f: config_of(f, num_attention_heads=[]), "do not fit LISA"),
        (lambda f: config_of(f, vision_tower=str(f / "none")), "none: not the CLIP that LISA needs"),
        (lambda f: config_of(f, vision_tower=7), "must give vision_tower"),
        (lambda f: config_of(f, mm_vision_select_layer="last"), "the last three as numbers"),
        (lambda f: config_of(f, mm_vision_select_layer=-5), "clip: not the CLIP"),
        (lambda f: config_of(f, mm_hidden_size=32), "clip: not the CLIP"),
        (lambda f: (f / "clip" / "model.safetensors").unlink(), "not the CLIP that LISA needs"),
        (lambda f: (f / "clip" / "preprocessor_config.json").unlink(), "its CLIPImageProcessorPil cannot be loaded"),
        (lambda f: (f / "model-00001-of-00002.safetensors").write_bytes(b"broken"), "cannot be read"),
        (lambda f: (f / "model-00001-of-00002.safetensors").unlink(), "missing"),
        (lambda f: (f / "tokenizer.json").unlink(), "its tokenizer lacks <im_end>"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "its tokenizer cannot be loaded .* sentencepiece"),
        (
            lambda f: LlamaTokenizer.from_pretrained(f, extra_special_tokens=["[MORE]"]).save_pretrained(f),
            "has 359 tok",
        ),
    ],
)
def test_a_broken_folder_is_refused_on_one_line(
    spoil: Callable[[Path], object], message: str, lisa_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "lisa"
    shutil.copytree(lisa_folder, folder)
    config_of(folder, vision_tower=str(folder / "clip"))
    spoil(folder)
    with pytest.raises(MfpoError, match=message) as caught:
        LisaRegions(str(folder))
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused_and_the_named_command_converts_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"vision_tower": "clip"}))
    torch.save({"lm_head.weight": torch.ones(2, 3)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"model.norm.weight": torch.zeros(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(MfpoError, match="pickles") as caught:
        load_lisa(tmp_path)
    [code] = re.findall(r'python -c "(.*)"', str(caught.value))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert load_file(tmp_path / "pytorch_model-00001-of-00002.safetensors")["lm_head.weight"].equal(torch.ones(2, 3))
    assert load_file(tmp_path / "pytorch_model-00002-of-00002.safetensors").keys() == {"model.norm.weight"}
