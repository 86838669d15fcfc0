"""Features of a frozen vision tower that are kept on disk against those that it computes."""

import json

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, PixtralVisionConfig

from mfpo.errors import SettingError
from mfpo.logprobs.sequences import collate, token_logps
from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings
from mfpo.train.vision_cache import keep_features

KEPT = ("idefics3", "llava", "llava_next", "smolvlm")


def test_kept_features_are_those_of_the_tower_and_computed_once(family, tmp_path):
    tower = family.model.get_encoder(modality="image")
    tower.requires_grad_(False)
    if family.name not in KEPT:
        with pytest.raises(SettingError, match=f"vision_cache cannot keep features of a '{family.name}' model"):
            keep_features(family.model, tmp_path)
        return
    batch, part = collate(family.rows, 0), collate(family.rows[1:3], 0)
    expected, of_part = token_logps(family.model, batch), token_logps(family.model, part)
    expected.sum().backward()
    gradients = {name: weight.grad for name, weight in family.model.named_parameters() if weight.grad is not None}
    family.model.zero_grad()
    rows, forward = [], tower.forward

    def count(pixel_values, **options):
        rows.append(len(pixel_values))
        return forward(pixel_values, **options)

    tower.forward = count
    keep_features(family.model, tmp_path / "kept")
    torch.testing.assert_close(token_logps(family.model, part), of_part, rtol=1e-5, atol=1e-5)
    found = token_logps(family.model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    for name, weight in family.model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(token_logps(family.model, batch), expected, rtol=1e-5, atol=1e-5)
    assert rows[1] == 2, "the first image twice, to compare"
    assert len(rows) == 3, "the third pass has found all"
    assert sum(rows) - 2 == len(list((tmp_path / "kept").iterdir()))


@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 2)])
def test_tower_that_packs_images_into_one_row_is_refused_and_nothing_is_kept(rows, tmp_path):
    """Pixtral's, which a LLaVA may have."""
    torch.manual_seed(0)
    tower = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = tower | {"model_type": "llama", "vocab_size": 32}
    config = LlavaConfig(
        vision_config=PixtralVisionConfig(**tower, head_dim=16, image_size=64, patch_size=16),
        text_config=text,
        image_token_index=3,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    images = {"pixel_values": torch.randn(2, 3, 32, 48)[rows], "image_sizes": torch.tensor([[32, 48]] * 2)[rows]}
    assert model.get_image_features(**images).pooler_output
    keep_features(model, tmp_path / "kept")
    with pytest.raises(SettingError, match="cannot keep features of a 'llava' model with a PixtralVisionModel; leave"):
        model.get_image_features(**images)
    assert not (tmp_path / "kept").exists()


def test_another_image_has_other_features(make_llava, tmp_path):
    family = make_llava()
    family.model.requires_grad_(False)
    batch = collate(family.rows, 0)
    keep_features(family.model, tmp_path)
    other = batch | {"pixel_values": batch["pixel_values"].flip(0)}
    assert not torch.allclose(token_logps(family.model, batch), token_logps(family.model, other), atol=1e-2)


def test_tower_that_is_trained_is_refused(make_llava, tmp_path):
    with pytest.raises(SettingError, match="but this one is trained"):
        keep_features(make_llava().model, tmp_path)
    with pytest.raises(SettingError, match="train_vision_tower is true"):
        TrainSettings(vision_cache=True, train_vision_tower=True)


def test_training_with_kept_features_is_training_without(tiny_llava, preference_data, tmp_path):
    fast = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "logging_steps": 1}
    fast |= {"method": "mfpo", "curriculum": False}
    curves = []
    for cache in (False, True):
        train(preference_data, tiny_llava, tmp_path / str(cache), TrainSettings(**fast, vision_cache=cache))
        lines = (tmp_path / str(cache) / "metrics.jsonl").read_text().splitlines()
        curves.append([json.loads(line) for line in lines])
    (folder,) = (preference_data / ".vision").iterdir()
    assert len(list(folder.glob("*.safetensors"))) == 28, "an image and a rejected one of 14 records"
    for one, other in zip(*curves, strict=True):
        for name in ("loss", "rewards/margins", "rewards/image_margins", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5)
