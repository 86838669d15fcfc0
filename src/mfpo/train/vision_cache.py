"""The frozen vision tower's features of images, kept on disk between epochs and runs.

Each image, or tile of one, is a row of the tower's input; its features are a file named by the row's hash. None is
written before the tower has given a row the same features in another batch.
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

    Raises SettingError when the tower is trained or gives more than features of one row each; the first pass raises it
    when a row's features depend on the other rows, and nothing is kept.
    """
    tower = model.get_encoder(modality="image")
    if model.config.model_type not in _FAMILIES:
        raise _refused(model)
    if any(weight.requires_grad for weight in tower.parameters()):
        raise SettingError("vision_cache keeps what a frozen vision tower computes, but this one is trained")
    forward = tower.forward
    layers = getattr(model.config, "vision_feature_layer", [])
    layers = layers if isinstance(layers, list) else [layers]

    def compute(rows: list[int], by_row: dict[str, Tensor], options: dict[str, Any]) -> list[Tensor]:
        """The features of some rows, a tensor for each layer that is read."""
        with torch.no_grad():
            output = forward(**options | {name: value[rows] for name, value in by_row.items()})
        return [output.hidden_states[layer] for layer in layers] or [output.last_hidden_state]

    is_compared = False

    def encode(pixel_values: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        nonlocal is_compared
        by_row = {"pixel_values": pixel_values} | {name: v for name, v in options.items() if torch.is_tensor(v)}
        if any(len(value) != len(pixel_values) for value in by_row.values()):
            raise _refused(model)
        rows = [{name: value[row] for name, value in by_row.items()} for row in range(len(pixel_values))]
        files = [folder / f"{_hash(row)}.safetensors" for row in rows]
        if missing := [number for number, file in enumerate(files) if not file.exists()]:
            states = compute(missing, by_row, options)
            if not is_compared and not _agree(states, compute([missing[0]] * 2, by_row, options), rows=len(missing)):
                raise _refused(model)
            is_compared = True
            for place, number in enumerate(missing):
                _write(
                    files[number],
                    {str(layer): state[place] for layer, state in zip(layers or [""], states, strict=True)},
                )
        loaded = [load_file(file) for file in files]
        features = {name: torch.stack([entry[name] for entry in loaded]).to(pixel_values.device) for name in loaded[0]}
        hidden = {layer: features[str(layer)] for layer in layers}
        return BaseModelOutputWithPooling(last_hidden_state=features.get(""), hidden_states=hidden)

    tower.forward = encode


def _refused(model: Any) -> SettingError:
    kind, tower = model.config.model_type, type(model.get_encoder(modality="image")).__name__
    return SettingError(f"vision_cache cannot keep features of a {kind!r} model with a {tower}; leave it out")


def _agree(states: list[Tensor], twice: list[Tensor], *, rows: int) -> bool:
    """Whether the first of `rows` rows has the same features as when the tower is given it twice, alone."""
    return all(
        (len(state), len(pair)) == (rows, 2)
        and state[0].shape == pair[0].shape
        # bfloat16 of other batches differs by 1 % or so; what a row has of others is far more.
        and all((repeat - state[0]).norm() <= 0.05 * state[0].norm() for repeat in pair)
        for state, pair in zip(states, twice, strict=True)
    )


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
