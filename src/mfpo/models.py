"""Loading a vision-language model and its processor from a folder, or from the hub."""

import hashlib
import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import logging

from mfpo.adapters import merged, read_config
from mfpo.errors import MfpoError, brief, first_line
from mfpo.folders import fingerprint
from mfpo.hub import check_model_files, find_model
from mfpo.records import IMAGE_PLACE, content_parts

# What transformers raises for a file that is missing or broken, depending on how.
BROKEN = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    SafetensorError,
    StrictDataclassError,
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' notes, and its bars for reading and writing weights, off the screen; also a decorator."""
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype() -> torch.dtype:
    """The precision to compute in: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device().type == "cuda" else torch.float32


def check_model(path: Path) -> None:
    """Raises MfpoError when there is no model, no model that sees images, or one that is not in safetensors."""
    check_model_files(path)
    if (path / "adapter_config.json").is_file():
        return check_model(base_of(path))
    try:
        kind = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
    except (OSError, ValueError, KeyError) as error:
        raise MfpoError(f"{path}: its config.json is not a valid transformers config ({first_line(error)})") from None
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise MfpoError(f"{path}: a {kind!r} model takes no images; give a vision-language model such as LLaVA")


@quiet()
def load_model(path: Path, *, dtype: torch.dtype | None = None) -> Any:
    """The model in the folder `path`, on the GPU if there is one, in evaluation mode, in `default_dtype` or `dtype`.

    A folder with an adapter gives its base model with the adapter merged into it. Raises as `check_model`, and when
    weights are missing, broken, or of another shape than the configuration says, or an adapter does not fit its base.
    """
    check_model(path)
    if (path / "adapter_config.json").is_file():
        return merged(load_model(base_of(path), dtype=dtype), path).eval()
    # Absolute, as an adapter trained on it will name its base by this path.
    return load_weights(AutoModelForImageTextToText, path.resolve(), dtype=dtype or default_dtype()).to(device())


def load_weights(auto_class: Any, path: Path, **options: Any) -> Any:
    """The model of `auto_class` in the folder `path`, in evaluation mode; only safetensors, and no code from there.

    Raises MfpoError when weights are missing, broken, or of another shape than the configuration says.
    """
    try:
        model, loaded = auto_class.from_pretrained(
            path,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            **options,
        )
    except BROKEN as error:
        raise MfpoError(f"{path}: its weights cannot be loaded ({first_line(error)})") from None
    # transformers fills such weights with random numbers.
    missing = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]]))
    if missing:
        raise MfpoError(f"{path}: {len(missing)} weights are missing or of another shape, such as {missing[0]}")
    return model.eval()


def in_precision(model: Any, dtype: torch.dtype) -> Any:
    """The model with its weights in `dtype`, and a configuration that says so in all its parts."""
    parts = [getattr(model.config, name, None) for name in model.config.sub_configs]
    for config in [model.config, *filter(None, parts)]:
        config.dtype = dtype
    return model.to(dtype)


def model_files(path: Path) -> list[str]:
    """Hashes of the files of the model in the folder `path`; for an adapter of its base's, too."""
    folders = [path, base_of(path)] if (path / "adapter_config.json").is_file() else [path]
    return [fingerprint(folder, "*") for folder in folders]


def model_hash(model: Any) -> str:
    """A hash of the weights of a model in memory, and of its configuration."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def stored_dtype(path: Path) -> torch.dtype:
    """The precision that the model in the folder `path`, or the base of an adapter there, says it is stored in."""
    base = base_of(path) if (path / "adapter_config.json").is_file() else path
    return AutoConfig.from_pretrained(base, trust_remote_code=False).dtype or torch.float32


def load_processor(path: Path) -> Any:
    """The processor beside a model. Raises as `check_model`, and when there is no processor that takes images."""
    check_model(path)
    names = ("processor_config.json", "preprocessor_config.json")
    if not any((path / name).is_file() for name in names):
        raise MfpoError(f"{path}: no processor there ({' or '.join(names)}); save the model's processor beside it")
    try:
        return AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise MfpoError(f"{path}: its processor cannot be loaded ({first_line(error)})") from None


def check_places(processor: Any, turns: Sequence[dict[str, Any]]) -> None:
    """Warn, once, where the model's template moves the images of `turns` before the text of their turn."""
    moved = [turn | {"content": sorted(turn["content"], key=lambda part: part["type"] != "image")} for turn in turns]
    if (
        moved != list(turns)
        and len({processor.apply_chat_template(some, tokenize=False) for some in (turns, moved)}) == 1
    ):
        _warn("the model's chat template puts images before the text: where <image> stands in a prompt is lost")


@cache
def _warn(message: str) -> None:
    getLogger(__name__).warning(message)


def encode_questions(processor: Any, questions: Sequence[str], images: Sequence[Image.Image]) -> Any:
    """A batch to generate from: one question and one image a row, in the model's template, padded on the left.

    The image stands at the question's `<image>`, or before it.
    """
    chats = [
        [{"role": "user", "content": content_parts(text if IMAGE_PLACE in text else IMAGE_PLACE + text)}]
        for text in questions
    ]
    for chat in chats:
        check_places(processor, chat)
    prompts = processor.apply_chat_template(chats, add_generation_prompt=True)
    bos = processor.tokenizer.bos_token
    return processor(
        text=prompts,
        images=[[image] for image in images],
        return_tensors="pt",
        padding=True,
        padding_side="left",
        add_special_tokens=not (bos and prompts[0].startswith(bos)),  # some templates write it, others leave it to us
    )


def cache_argument(model: Any) -> str:
    """What the model's forward pass calls its cache: transformers says `cache` of late."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def base_of(adapter: Path) -> Path:
    """The folder of the model that an adapter belongs to, downloaded if it is a name on the hub."""
    config = read_config(adapter)
    base = config.base_model_name_or_path
    if not base or not isinstance(base, str):
        raise MfpoError(f"{adapter}: its adapter_config.json names no base model")
    folder = find_model(base, revision=config.revision)
    if not os.path.isdir(folder):
        raise MfpoError(f"{adapter}: its base {brief(base)} is no folder here; mend its adapter_config.json")
    if (folder / "adapter_config.json").is_file():
        raise MfpoError(f"{adapter}: its base {base} is an adapter too; merge that one first with `mfpo merge`")
    return folder
