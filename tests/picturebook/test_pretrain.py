import json

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mfpo.picturebook import WEIGHTS
from mfpo.picturebook.books import CONTEXT
from mfpo.picturebook.drawings import KINDS
from mfpo.picturebook.model import PATCH
from mfpo.picturebook.pretrain import patch_labels, pretrain
from mfpo.picturebook.pretrain_settings import ContextSettings, PretrainSettings
from mfpo.picturebook.scenes import SIDE, draw_scene, make_scene


def test_patch_labels_name_what_covers_the_most_of_a_patch():
    side = SIDE // PATCH
    for seed in range(20):
        scene = make_scene(seed)
        masks = draw_scene(scene)[1]
        labels = patch_labels(scene, masks)
        assert labels.shape == (side * side, 2)
        for row in range(side):
            for column in range(side):
                box = (slice(row * PATCH, (row + 1) * PATCH), slice(column * PATCH, (column + 1) * PATCH))
                cover = {kind: mask[box].mean() for kind, mask in masks.items()}
                best = max(cover, key=lambda kind: cover[kind])
                expected = 1 + list(KINDS).index(best) if cover[best] > 0.2 else 0
                assert labels[row * side + column, 0] == expected
        assert ((labels[:, 0] > 0) == (labels[:, 1] > 0)).all()
        assert np.count_nonzero(labels) > 0


def test_pretraining_learns(tmp_path):
    pretrain(tmp_path / "run", PretrainSettings(scenes=32, tower_steps=20, language_steps=25, batch_size=8, bf16=False))
    log = json.loads((tmp_path / "run" / "pretraining.json").read_text())
    assert log["tower"][-1]["loss"] < 0.8 * (np.log(1 + len(KINDS)) + np.log(17))
    assert log["language"][-1]["caption_loss"] < 0.8 * np.log(len(tokens(tmp_path / "run")))
    assert names(tmp_path / "run") == names(WEIGHTS)


def test_a_seed_gives_the_same_weights(tmp_path):
    weights = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        settings = PretrainSettings(scenes=8, tower_steps=2, language_steps=2, batch_size=4, bf16=False, seed=seed)
        pretrain(tmp_path / name, settings)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_the_second_book_takes_the_tower_of_the_first(tmp_path):
    settings = ContextSettings(scenes=8, language_steps=2, batch_size=8, bf16=False)
    pretrain(tmp_path / "run", settings, CONTEXT)
    made, shipped = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", WEIGHTS))
    tower = [name for name in shipped if "vision_tower" in name]
    assert len(tower) > 50
    assert all(torch.equal(made[name], shipped[name]) for name in tower)
    assert json.loads((tmp_path / "run" / "pretraining.json").read_text())["tower"] == []


def tokens(folder):
    return json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]


def names(folder):
    with safe_open(folder / "model.safetensors", "pt") as weights:
        return set(weights.keys())
