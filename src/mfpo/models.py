"""Load a vision-language model from a folder or from the Hub, and what differs from one kind to the next."""

import hashlib
import inspect
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import logging

from mfpo.adapters import merged, read_config
from mfpo.errors import MfpoError, brief, first_line
from mfpo.folders import fingerprint
from mfpo.hub import check_model_files, find_model

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
    """Raises MfpoError when there is no model, or it does not take images or is not in safetensors."""
    check_model_files(path)
    if (path / "adapter_config.json").is_file():
        return check_model(base_of(path))
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise MfpoError(f"{path}: its config.json is not a valid transformers config ({_cause(error)})") from None
    kind = config.model_type
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise MfpoError(
            f"{path}: a {kind!r} model does not take images and answer in text (AutoModelForImageTextToText); "
            "give a vision-language model such as LLaVA"
        )
    if config.is_encoder_decoder:
        raise MfpoError(
            f"{path}: a {kind!r} model is an encoder-decoder, which answers in a sequence of its own; "
            "give a decoder-only one such as LLaVA"
        )


def _cause(error: Exception) -> str:
    """Its first line, or that of what a configuration's own check has found."""
    return first_line(error.__cause__ if isinstance(error.__cause__, ValueError) else error)


@quiet()
def load_model(path: str | Path, *, dtype: torch.dtype | None = None) -> Any:
    """The model in the folder `path`, or of that name on the Hub, in evaluation mode, in `default_dtype` or `dtype`.

    It is on the GPU if there is one.

    For an adapter's folder, returns its base model with the adapter merged into it. Raises as `check_model`, and when
    weights are missing, broken, or of another shape than the configuration says, or an adapter does not fit its base.
    """
    path = find_model(str(path))
    check_model(path)
    if (path / "adapter_config.json").is_file():
        return merged(load_model(base_of(path), dtype=dtype), path).eval()
    # Absolute, as an adapter trained on it will name its base by this path.
    return load_weights(AutoModelForImageTextToText, path.resolve(), dtype=dtype or default_dtype()).to(device())


def shape_of(model: Any) -> Any:
    """The model in a folder, of an adapter there its base, or a model in memory, without weights: on the meta device.

    Raises as `check_model`.
    """
    if isinstance(model, Path):
        check_model(model)
        config = AutoConfig.from_pretrained(with_weights(model), trust_remote_code=False)
    else:
        config = deepcopy(model.config)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config).eval()


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
    except ImportError as error:
        raise not_installed(path, "vision tower", error) from None
    except BROKEN as error:
        raise MfpoError(f"{path}: its weights cannot be loaded ({first_line(error)})") from None
    # transformers fills such weights with random numbers.
    missing = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]]))
    if missing:
        raise MfpoError(f"{path}: {len(missing)} weights are missing or of another shape, such as {missing[0]}")
    return model.eval()


def save_as_on_hub(model: Any, folder: Path) -> None:
    """Save the model with its tensors named as in the Hub's checkpoints: vLLM knows no other names.

    For a model that was not loaded from files transformers leaves `vision_model` out of those of CLIP and SigLIP.
    """
    loaded = getattr(model, "_weight_conversions", None)
    model._weight_conversions = loaded or get_model_conversion_mapping(model, add_legacy=False)
    model.save_pretrained(folder)
    model._weight_conversions = loaded


def in_precision(model: Any, dtype: torch.dtype) -> Any:
    """The model with its weights in `dtype`, and a configuration that says so in all its parts."""
    parts = [getattr(model.config, name, None) for name in model.config.sub_configs]
    for config in [model.config, *filter(None, parts)]:
        config.dtype = dtype
    return model.to(dtype)


def model_files(model: Any, processor: Any = None) -> list[str]:
    """Hashes of a model's files, for an adapter of its base's, too; or of a model in memory with its processor."""
    if not isinstance(model, Path):
        return [model_hash(model, processor)]
    folders = [model, base_of(model)] if (model / "adapter_config.json").is_file() else [model]
    return [fingerprint(folder, "*") for folder in folders]


def model_hash(model: Any, processor: Any) -> str:
    """A hash of the weights, the configuration and the processor of a model in memory, wherever they came from."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    if backend := getattr(processor.tokenizer, "backend_tokenizer", None):
        # It would be saved with what its last call was told, and every call tells it anew.
        backend.no_padding()
        backend.no_truncation()
    with TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        digest.update(fingerprint(Path(folder), "*").encode())
    return digest.hexdigest()


def stored_dtype(path: Path) -> torch.dtype:
    """The precision that the model in the folder `path`, or the base of an adapter there, is stored in.

    As its configuration says or, where it says nothing, as most of its weights are.
    """
    base = with_weights(path)
    if dtype := AutoConfig.from_pretrained(base, trust_remote_code=False).dtype:
        return dtype
    sizes: Counter[torch.dtype] = Counter()
    for file in base.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118, it is no mapping
                weight = weights.get_slice(name)
                sizes[_STORED.get(weight.get_dtype(), torch.float32)] += math.prod(weight.get_shape())
    return sizes.most_common(1)[0][0]


# safetensors' names of what can be trained on; anything else, such as quantized weights, becomes float32.
_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


# What transformers' vision towers, and processors of images or videos, import, and it does not depend on.
_NOT_TRANSFORMERS = ("timm", "torchvision", "num2words")


def not_installed(path: Path, part: str, error: ImportError) -> Exception:
    """The error that tells what to install for a `part` of a model, or `error` itself where that is not known."""
    wanted = [name for name in _NOT_TRANSFORMERS if name in str(error).lower()]
    if not wanted:
        return error
    return MfpoError(f"{path}: its {part} needs {' and '.join(wanted)}; pip install 'mfpo[vlms]'")


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the one that the chat template writes, and those that the model may generate."""
    generated = model.generation_config.eos_token_id
    generated = generated if isinstance(generated, list) else [generated]
    return sorted({tokenizer.eos_token_id, *generated} - {None})


@contextmanager
def plain_generation(model: Any, tokenizer: Any) -> Iterator[None]:
    """Let `model.generate` choose the likeliest token: of the model's generation settings, only special tokens hold.

    Those settings may sample, penalise repetitions, demand lengths, forbid or force tokens, and `generate` takes from
    them whatever it is not told: so they go for as long. Where they name no end, it is the tokenizer's.
    """
    defaults = model.generation_config  # changed in place, as a model may be wrapped, by PEFT for instance
    settings = vars(defaults).copy()
    plain = GenerationConfig(
        bos_token_id=defaults.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if defaults.eos_token_id is None else defaults.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if defaults.pad_token_id is None else defaults.pad_token_id,
    )
    vars(defaults).clear()
    vars(defaults).update(vars(plain))
    try:
        yield
    finally:
        vars(defaults).clear()
        vars(defaults).update(settings)


def cache_argument(model: Any) -> str:
    """What the model's forward pass calls its cache: transformers says `cache` of late."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def numbers_all_images(model: Any, row: Mapping[str, torch.Tensor]) -> bool:
    """Whether an image's place depends on the rows before it in a batch: HunYuan-VL numbers the images of all rows.

    `row` is what the processor makes of one prompt, (1, length) and its images.
    """
    rope_index, names = rope_index_of(model), ("input_ids", "mm_token_type_ids", "image_grid_thw")
    if rope_index is None or not row.keys() >= {*names}:
        return False
    first, second = rope_index(**{name: torch.cat([row[name]] * 2) for name in names})[0].unbind(dim=1)
    return not torch.equal(first, second)


def rope_index_of(model: Any) -> Callable[..., Any] | None:
    """What counts the positions of multimodal rope, if the model has it."""
    return next((part.get_rope_index for part in model.modules() if hasattr(part, "get_rope_index")), None)


def with_weights(path: Path) -> Path:
    """The folder that has the weights: that of an adapter's base, or `path` itself."""
    return base_of(path) if (path / "adapter_config.json").is_file() else path


def base_of(adapter: Path) -> Path:
    """The folder of the model that an adapter belongs to, downloaded if it is a name on the hub."""
    config = read_config(adapter)
    base = config.base_model_name_or_path
    if not base or not isinstance(base, str):
        raise MfpoError(f"{adapter}: its adapter_config.json names no base model")
    folder = find_model(base, revision=config.revision)
    if not os.path.isdir(folder):
        raise MfpoError(f"{adapter}: its base {brief(base)} is not a folder here; fix its adapter_config.json")
    if (folder / "adapter_config.json").is_file():
        raise MfpoError(f"{adapter}: its base {base} is an adapter too; merge that one first with `mfpo merge`")
    return folder
