"""The policy: which of its weights are trainable, and in which precision."""

import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._C import DispatchKey
from torch._higher_order_ops.flex_attention import flex_attention
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, set_seed

from mfpo.adapters import with_adapter
from mfpo.errors import MfpoError, SettingError
from mfpo.logprobs.prefix import shares_prefix
from mfpo.models import device, load_model, load_weights
from mfpo.train.settings import TrainSettings

# What projects the images' features into the language model, where it is a part of the vision tower (Qwen-VL).
_PROJECTORS = ("merger", "deepstack_merger_list")

# Of FSDP2 in bfloat16. accelerate's own would also round what comes out of the model, our log-probabilities.
SHARDED_PRECISION = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def computes_in_bf16(settings: TrainSettings) -> bool:
    return settings.bf16 and device().type == "cuda"


def precision(settings: TrainSettings) -> AbstractContextManager[Any]:
    """The precision context for forward passes outside the training loop, the same as in training."""
    return torch.autocast(device().type, torch.bfloat16, enabled=computes_in_bf16(settings))


def weights_dtype(settings: TrainSettings) -> torch.dtype:
    """float32 for weights that move, as a rate of 5e-7 is lost in bfloat16, which a frozen base may have."""
    return torch.bfloat16 if settings.lora_rank and computes_in_bf16(settings) else torch.float32


def open_policy(model: Path, settings: TrainSettings, *, last: Path | None) -> Any:
    """The policy as `model`, or as the stage before or a checkpoint has saved it in `last`."""
    if settings.quantize_4bit:
        base = _load_4bit(model)
    else:
        base = load_model(last if last and not settings.lora_rank else model, dtype=weights_dtype(settings))
    if shares_prefix(base):
        base.set_attn_implementation({"text_config": attention_of(base, settings)})
    return make_trainable(base, settings, targets=lora_targets(base, settings), adapter=last)


def _load_4bit(model: Path) -> Any:
    """The frozen base of QLoRA (Dettmers et al. 2023): weights in doubly quantized NF4, computed with in bfloat16."""
    return load_weights(
        AutoModelForImageTextToText,
        model.resolve(),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        dtype=torch.bfloat16,
        device_map={"": torch.cuda.current_device()},
    )


def wanted_attention(settings: TrainSettings) -> str:
    return settings.attention or ("flex_attention" if device().type == "cuda" else "sdpa")


def attention_of(base: Any, settings: TrainSettings) -> str:
    """How the language model attends where prompts are shared: as wanted, or by sdpa where it has no FlexAttention.

    Raises SettingError when the settings ask for FlexAttention and the model does not support it.
    """
    decoder = base.get_decoder()
    text = decoder.config
    fault = None
    if not decoder._supports_flex_attn:
        fault = f"transformers has none for a {text.model_type!r} language model"
    elif DispatchKey.AutocastCUDA not in flex_attention.py_kernels:
        fault = f"the one in torch {torch.__version__} has no mixed precision"
    elif (width := getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads) < 16:
        fault = f"torch's is for heads of 16 or more on a GPU, and these have {width}"
    if fault and settings.attention == "flex_attention":
        raise SettingError(f"attention is flex_attention, but {fault}; set attention=sdpa")
    return "sdpa" if fault else wanted_attention(settings)


def make_trainable(base: Any, settings: TrainSettings, *, targets: list[str], adapter: Path | None) -> Any:
    """The policy: `base` with its vision tower frozen, or with LoRA adapters on `targets`, new or saved in `adapter`.

    Dropout is switched off, so that policy and reference differ by their weights alone (as TRL does).
    """
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    if not settings.lora_rank:
        if not settings.train_vision_tower:
            tower = _vision_tower(base)
            tower.requires_grad_(False)
            for name in _PROJECTORS:
                getattr(tower, name, nn.Identity()).requires_grad_(True)
        return base
    if adapter is not None:
        return with_adapter(base, adapter, is_trainable=True)
    set_seed(settings.seed)
    config = LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=targets)
    return get_peft_model(base, config)


def _vision_tower(model: Any) -> Any:
    tower = model.get_encoder(modality="image")
    if tower is model:
        raise MfpoError(f"cannot tell the vision tower of a {type(model).__name__}; set train_vision_tower=true")
    return tower


def lora_targets(model: Any, settings: TrainSettings) -> list[str]:
    """The names of the modules that get an adapter; none without LoRA.

    Raises SettingError when the setting `lora_targets` matches no linear layer.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    pattern = settings.lora_targets
    if not settings.lora_rank:
        return []
    if pattern is None:
        decoder = set(model.get_decoder().modules())
        return [name for name, module in linear.items() if module in decoder]
    targets = [name for name in linear if re.fullmatch(pattern, name)]
    if not targets:
        raise SettingError(f"lora_targets {pattern!r} matches none of the linear layers, such as {list(linear)[-1]!r}")
    return targets
