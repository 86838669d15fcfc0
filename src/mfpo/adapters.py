"""peft adapters: loaded onto their base model, or refused if they do not fit it."""

import math
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor

from mfpo.errors import MfpoError, brief, first_line
from mfpo.files import read_json

_PREFIX = "base_model.model."

_Layout = tuple[tuple[str, str], ...]

# What modules were called elsewhere: pairs of a pattern in today's names and its replacement, of which the first that
# fits counts. A module whose name becomes empty had no adapters there.
_BEFORE_4_52 = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head$", "language_model.lm_head"),
    (r"^model\.", ""),
)
_LLAVA = (
    (r"^model\.language_model\.", "model."),
    (r"^model\.multi_modal_projector\.linear_1$", "model.mm_projector.0"),
    (r"^model\.multi_modal_projector\.linear_2$", "model.mm_projector.2"),
)
_LAYOUTS: tuple[_Layout, ...] = (
    (),  # today's
    ((r"^model\.vision_tower\.", "model.vision_tower.vision_model."),),  # transformers 4.52 to 5, CLIP and SigLIP
    ((r"^model\.vision_tower\.", "vision_tower.vision_model."), *_BEFORE_4_52),
    _BEFORE_4_52,  # with vision towers of other kinds
    ((r"^model\.vision_tower\..*", ""), *_LLAVA),  # the original LLaVA code
    ((r"^model\.visual\.", "visual."), *_LLAVA),  # Qwen2-VL before transformers 4.52
)


@contextmanager
def _quiet() -> Iterator[None]:
    """peft's advice, on how to train and save, is not for who uses an adapter; what it ignores is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", "Unexpected keyword arguments")
        yield


@_quiet()
def read_config(path: Path) -> PeftConfig:
    """The configuration of the adapter in the folder `path`. Raises MfpoError when peft does not know it."""
    raw_config = read_json(path / "adapter_config.json")
    _check_kinds(path, raw_config)
    try:
        config = PeftConfig.from_pretrained(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MfpoError(f"{path}: its adapter_config.json is not a valid peft config ({first_line(error)})") from None
    if config.peft_type is None or config.is_prompt_learning:
        raise MfpoError(f"{path}: a {config.peft_type} adapter cannot be merged into its base; give a LoRA adapter")
    for name in ("r", "lora_alpha", "alpha"):  # peft's defaults would scale the adapter by something else
        if hasattr(config, name) and raw_config.get(name) is None:
            raise MfpoError(f"{path}: its adapter_config.json has no {name}; add the value that it was trained with")
    for field in fields(config):
        value = getattr(config, field.name)
        # Python takes "false" for true, and true for 1.
        is_flag, should_be = isinstance(value, bool), isinstance(field.default, bool)
        is_right = is_flag if should_be else isinstance(value, int | float) and not is_flag
        typed = isinstance(field.default, int | float) and field.name not in ("init_lora_weights", "init_weights")
        if typed and value is not None and not is_right:
            kind = "true or false" if should_be else "a number"
            raise MfpoError(f"{path}: {field.name} in its adapter_config.json is {brief(value)}, but must be {kind}")
    return config


def _check_kinds(path: Path, raw_config: Any) -> None:
    """Raises MfpoError for wrong types, which peft would report as missing attributes and the like."""
    if not isinstance(raw_config, dict):
        raise MfpoError(f"{path}: its adapter_config.json is not a peft config: it must be an object {{...}}")
    for name in ("target_modules", "exclude_modules"):
        if not isinstance(value := raw_config.get(name), str | list | None):
            raise MfpoError(
                f"{path}: {name} in its adapter_config.json is {brief(value)}, but must be a string or a list"
            )
    for name in ("rank_pattern", "alpha_pattern"):
        value = raw_config.get(name, {})
        if not isinstance(value, dict) or not all(isinstance(number, int | float) for number in value.values()):
            raise MfpoError(
                f"{path}: {name} in its adapter_config.json is {brief(value)}, but must be an object of numbers"
            )


@_quiet()
def with_adapter(base: Any, path: Path, *, is_trainable: bool = False) -> Any:
    """The model `base` with the adapter in the folder `path` on it, as peft's model.

    Tensors with the names of transformers before 4.52 or of the original LLaVA code get today's names, where all of
    them and the targets in the configuration do. Raises MfpoError when the adapter does not fit the model.
    """
    config, tensors = read_config(path), read_tensors(path)
    config.inference_mode = not is_trainable
    try:
        config, tensors = _in_todays_names(base, config, tensors)
        model = PeftModel(base, config)
        expected = get_peft_model_state_dict(model, save_embedding_layers=False)
        # The adapter's own weights have peft's name for it in theirs, which files do not.
        weights = {name: value for name, value in model.state_dict().items() if "default" not in name.split(".")}
        _check_tensors(path, tensors, expected, weights)
        lost = set_peft_model_state_dict(model, tensors).unexpected_keys
    except (MfpoError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what a wrong value in the configuration raises in peft is open-ended
        raise MfpoError(
            f"{path}: its adapter does not fit its base, or its adapter_config.json is wrong ({first_line(error)})"
        ) from None
    if lost:
        raise MfpoError(f"{path}: peft cannot place {len(lost)} of its adapter's tensors, such as {lost[0][:100]!r}")
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    scales = [scale for layer in layers for scale in getattr(layer, "scaling", {}).values()]
    if not all(scale > 0 and math.isfinite(scale) for scale in scales):
        raise MfpoError(
            f"{path}: its adapter_config.json gives a scale that is not positive and finite; fix its lora_alpha"
        )
    return model


@_quiet()
def merged(base: Any, path: Path) -> Any:
    """The model `base` with the adapter in the folder `path` merged into it. Raises as `with_adapter`."""
    adapted = with_adapter(base, path)
    try:
        model = adapted.merge_and_unload()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # as above
        raise MfpoError(f"{path}: its adapter cannot be merged into its base ({first_line(error)})") from None
    return model.requires_grad_(True)  # peft has frozen it


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of the adapter in the folder `path`, and those that the original LLaVA code trains beside it.

    Raises MfpoError when they cannot be read, or are not finite.
    """
    beside = path / "non_lora_trainables.safetensors"
    if beside.with_suffix(".bin").is_file() and not beside.is_file():
        raise MfpoError(
            f"{path}: the weights in non_lora_trainables.bin belong to the adapter, but mfpo opens no pickles; "
            f"save them as {beside.name} with safetensors.torch.save_file, or merge with the code that wrote them"
        )
    try:
        tensors: dict[str, Tensor] = load_file(path / "adapter_model.safetensors")
        tensors |= load_file(beside) if beside.is_file() else {}
    except Exception as error:  # what a broken file raises in safetensors is open-ended
        raise MfpoError(f"{path}: its adapter cannot be loaded ({first_line(error)})") from None
    broken = [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]
    if broken:
        raise MfpoError(f"{path}: its adapter holds values that are not finite, in {min(broken)[:100]!r}")
    return tensors


def _in_todays_names(base: Any, config: PeftConfig, tensors: dict[str, Tensor]) -> tuple[PeftConfig, dict[str, Tensor]]:
    """The adapter in the names of `base`, by the layout that leaves fewest missing; as it is where none fits."""
    modules = [name for name, module in base.named_modules() if any(True for _ in module.parameters(recurse=False))]
    fits = []
    for layout in _LAYOUTS:
        todays = {old: name for name in modules if (old := _old_name(name, layout))}
        places = _places(tensors, todays)
        adapted = {place for name, place in places.items() if ".lora_" in name}
        targets = {old for old in todays if adapted and check_target_module_exists(config, old)}
        # Tensors and configuration have to agree, or it is unsure what the names mean.
        if adapted and adapted <= targets:
            fits.append((layout, todays, targets, places))
    layout, todays, targets, places = min(fits, key=lambda fit: len(fit[2]), default=((), {}, set(), {}))
    if not layout or config.peft_type != PeftType.LORA:
        return config, tensors
    names = {name: todays[place] + name.removeprefix(_PREFIX + place) for name, place in places.items()}
    config = _retarget(config, {old: todays[old] for old in targets})
    return config, {_PREFIX + names[name]: tensor for name, tensor in tensors.items()}


def _old_name(name: str, layout: _Layout) -> str:
    for pattern, replacement in layout:
        changed = re.sub(pattern, replacement, name)
        if changed != name:
            return changed
    return name


def _places(tensors: Iterable[str], modules: Iterable[str]) -> dict[str, str]:
    """The module of each tensor by its name; none at all if that of one is not among `modules`."""
    known = set(modules)
    places = {}
    for name in tensors:
        parts = name.removeprefix(_PREFIX).split(".")
        heads = (".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
        place = next((head for head in heads if head in known), None)
        if place is None or not name.startswith(_PREFIX):
            return {}
        places[name] = place
    return places


def _retarget(config: PeftConfig, todays: dict[str, str]) -> PeftConfig:
    """The configuration, written in old names, for the modules with today's."""
    for pattern in (config.rank_pattern, config.alpha_pattern):
        new_pattern = {todays[old]: pattern[key] for old in todays if (key := get_pattern_key(pattern, old)) in pattern}
        pattern.clear()
        pattern.update(new_pattern)
    config.target_modules = set(todays.values())
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    return config


def _check_tensors(
    path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor], weights: dict[str, Tensor]
) -> None:
    """Raises MfpoError unless the adapter has all `expected` tensors, and beside them only `weights` of its base."""
    if not expected:
        raise MfpoError(f"{path}: its adapter_config.json targets nothing in its base")
    known = weights | expected
    faults = {
        "missing": [name for name in expected if name not in tensors],
        "unknown": [name for name in tensors if name not in known],
        "of another shape or type": [
            name
            for name, tensor in tensors.items()
            if name in known
            and (tensor.shape, tensor.is_floating_point()) != (known[name].shape, known[name].is_floating_point())
        ],
    }
    messages = [
        f"{len(names)} tensors are {fault}, such as {min(names)[:100]!r}" for fault, names in faults.items() if names
    ]
    if messages:
        raise MfpoError(f"{path}: its adapter does not fit its base: {'; '.join(messages)}")
