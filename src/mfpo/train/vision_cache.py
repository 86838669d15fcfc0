"""The frozen vision tower's features of images, kept on disk between epochs and runs.

Each image, or tile of one, is a row of the tower's input; its features are a file named by the row's hash.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mfpo.errors import SettingError
from mfpo.folders import whole_file, writing

# Families whose tower takes a row for each image or tile, and whose projector is no part of it, as Qwen-VL's is.
_FAMILIES = ("idefics3", "llava", "llava_next", "smolvlm")


def keep_features(model: Any, folder: Path) -> None:
    """Let the model's vision tower read features in `folder`, and keep there those that it has to compute.

    Raises SettingError when the tower is trained or gives more than features of one row each.
    """
    tower = model.get_encoder(modality="image")
    if model.config.model_type not in _FAMILIES:
        raise SettingError(f"vision_cache cannot keep features of a {model.config.model_type!r} model; leave it out")
    if any(weight.requires_grad for weight in tower.parameters()):
        raise SettingError("vision_cache keeps what a frozen vision tower computes, but this one is trained")
    forward = tower.forward
    layers = getattr(model.config, "vision_feature_layer", [])
    layers = layers if isinstance(layers, list) else [layers]

    def encode(pixel_values: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        by_row = {"pixel_values": pixel_values} | {name: v for name, v in options.items() if torch.is_tensor(v)}
        rows = [{name: value[row] for name, value in by_row.items()} for row in range(len(pixel_values))]
        files = [folder / f"{_hash(row)}.safetensors" for row in rows]
        missing = [number for number, file in enumerate(files) if not file.exists()]
        if missing:
            with torch.no_grad():
                output = forward(**options | {name: value[missing] for name, value in by_row.items()})
            states = {str(layer): output.hidden_states[layer] for layer in layers} or {"": output.last_hidden_state}
            for place, number in enumerate(missing):
                _write(files[number], {name: state[place] for name, state in states.items()})
        kept = [load_file(file) for file in files]
        features = {name: torch.stack([own[name] for own in kept]).to(pixel_values.device) for name in kept[0]}
        hidden = {layer: features[str(layer)] for layer in layers}
        return BaseModelOutputWithPooling(last_hidden_state=features.get(""), hidden_states=hidden)

    tower.forward = encode


def _hash(row: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for name, value in sorted(row.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write(file: Path, states: dict[str, Tensor]) -> None:
    """The file appears whole or not at all."""
    with whole_file(file, is_shared=True) as partial, writing("features of an image", file.parent):
        save_file({name: state.cpu().contiguous() for name, state in states.items()}, partial)
