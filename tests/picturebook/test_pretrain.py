import json

import numpy as np
import torch
from safetensors.torch import load_file

from mfpo.picturebook.drawings import KINDS
from mfpo.picturebook.model import PATCH
from mfpo.picturebook.pretrain import PretrainSettings, patch_labels, pretrain
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


def test_pretraining_is_reproducible(tmp_path):
    settings = PretrainSettings(scenes=60, tower_steps=2, language_steps=2, batch_size=4, bf16=False)
    for name in ("one", "two"):
        pretrain(tmp_path / name, settings)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_pretraining_learns(tmp_path):
    settings = PretrainSettings(scenes=200, tower_steps=30, language_steps=40, batch_size=12, bf16=False)
    pretrain(tmp_path / "one", settings)
    log = json.loads((tmp_path / "one" / "pretraining.json").read_text())
    assert log["tower"][-1]["loss"] < 0.7 * (np.log(1 + len(KINDS)) + np.log(17))
    assert log["language"][-1]["caption_loss"] < 0.7 * np.log(len(tokens(tmp_path / "one")))


def tokens(folder):
    return json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
