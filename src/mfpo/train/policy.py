"""The policy: which of its weights are trainable, and in which precision."""

import re
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._C import DispatchKey
from torch._higher_order_ops.flex_attention import flex_attention
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedModel, set_seed

from mfpo.adapters import with_adapter
from mfpo.errors import MfpoError, SettingError
from mfpo.logprobs.prefix import can_flex, shares_prefix
from mfpo.models import device, load_model, load_weights
from mfpo.train.processes import say
from mfpo.train.settings import TrainSettings

# What projects the images' features into the language model, where it is a part of the vision tower (Qwen-VL).
PROJECTORS = ("merger", "deepstack_merger_list")

# What chooses among experts: `mlp.gate`, `feed_forward.router`, `router.proj`, `mlp.shared_expert_gate`.
_ROUTER = re.compile(r"(^|\.)(gate|\w*router|shared_expert_gate)(\.|$)")

# Of FSDP2 in bfloat16. accelerate's own would also round what comes out of the model, our log-probabilities.
SHARDED_PRECISION = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def computes_in_bf16(settings: TrainSettings) -> bool:
    """Whether forward passes are in bfloat16, as set; on a CPU never."""
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
        base = _load_4bit(model, weights_dtype(settings))
        keep_backward_pass(base)
    else:
        base = load_model(last if last and not settings.lora_rank else model, dtype=weights_dtype(settings))
    if shares_prefix(base):
        base.set_attn_implementation({"text_config": attention_of(base, settings)})
    return make_trainable(base, settings, targets=lora_targets(base, settings), adapter=last)


def _load_4bit(model: Path, dtype: torch.dtype) -> Any:
    """The frozen base of QLoRA (Dettmers et al. 2023): weights in doubly quantized NF4, computed with in `dtype`."""
    return load_weights(
        AutoModelForImageTextToText,
        model.resolve(),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
        dtype=dtype,
        device_map={"": torch.cuda.current_device() if device().type == "cuda" else "cpu"},
    )


def keep_backward_pass(model: Any) -> None:
    """Keep weights in 4 bits as they are: on some CPUs a pass without gradients packs them, for inference alone."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes'
            module.support_avx512bf16_for_cpu = False


def wanted_attention(settings: TrainSettings) -> str:
    """The attention that is set, or the fastest of the device: FlexAttention on a GPU, else sdpa."""
    return settings.attention or ("flex_attention" if device().type == "cuda" else "sdpa")


def attention_of(base: Any, settings: TrainSettings) -> str:
    """How the language model attends where prompts are shared: as wanted, or by sdpa where it has no FlexAttention.

    Raises SettingError when the settings ask for FlexAttention and the model does not support it.
    """
    decoder = base.get_decoder()
    text = decoder.config
    fault = None
    if not decoder._supports_flex_attn:
        fault = f"transformers does not support it for a {text.model_type!r} language model"
    elif not can_flex(base.config):
        fault = "the model's layers have a sliding window, or see images both ways, which it cannot mask here"
    elif device().type == "cpu":
        fault = "it has no backward pass on a CPU"
    elif DispatchKey.AutocastCUDA not in flex_attention.py_kernels:
        fault = f"in torch {torch.__version__} it has no mixed precision"
    elif (width := getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads) < 16:
        fault = f"on a GPU it needs heads of width 16 or more, and these have {width}"
    if fault and settings.attention == "flex_attention":
        raise SettingError(f"attention is flex_attention, but {fault}; set attention=sdpa")
    return "sdpa" if fault else wanted_attention(settings)


def make_trainable(base: Any, settings: TrainSettings, *, targets: list[str], adapter: Path | None) -> Any:
    """The policy: `base` with its vision tower frozen, or with LoRA adapters on `targets`, new or saved in `adapter`.

    Dropout is switched off, so that policy and reference differ by their weights alone (as TRL does).
    """
    for module in base.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        # Of attention, whole layers and paths too: `attention_dropout`, `dropout`, `layerdrop`, `drop_prob`.
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    if not settings.lora_rank:
        if not settings.train_vision_tower:
            for tower in vision_towers(base):
                tower.requires_grad_(False)
                for name in PROJECTORS:
                    getattr(tower, name, nn.Identity()).requires_grad_(True)
        return base
    if adapter is not None:
        return with_adapter(base, adapter, is_trainable=True)
    set_seed(settings.seed)
    experts = _experts(base)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=[name for name in targets if name not in experts],
        target_parameters=[name for name in targets if name in experts] or None,
    )
    policy = get_peft_model(base, config)
    adapted = {*policy.base_model.targeted_module_names, *policy.base_model.targeted_parameter_names}
    left = set(targets if settings.lora_targets else [*targets, *experts]) - adapted
    say(f"adapters on {_by_part(adapted)}" + (f"; peft has none for {_by_part(left)}" if left else ""))
    return policy


def _by_part(names: Iterable[str]) -> str:
    """How many there are of each kind, such as `2 q_proj, 2 experts.down_proj`."""
    kinds = Counter(re.sub(r".*?((experts\.)?[^.]+)$", r"\1", name) for name in sorted(names))
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def unmoved(model: Any) -> list[nn.Module]:
    """The modules that stay in evaluation mode while `model` is trained, each without those in it.

    They are those without a weight that moves, and BatchNorm, whose statistics of a batch the reference has not seen.
    Linear layers do the same in both modes, but in evaluation bitsandbytes packs their 4-bit weights for inference.
    """
    moving = {module for module in model.modules() if any(weight.requires_grad for weight in module.parameters())}
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) or not (module in moving or isinstance(module, nn.Linear))
    ]


def vision_towers(model: Any) -> list[nn.Module]:
    """What encodes images: a tower, and a second one of another resolution in DeepSeek-VL's hybrid."""
    tower, decoder = model.get_encoder(modality="image"), model.get_decoder()
    if tower is model:
        raise MfpoError(f"cannot find the vision tower of a {type(model).__name__}; set train_vision_tower=true")
    models = [part for part in model.modules() if isinstance(part, PreTrainedModel) and decoder not in part.modules()]
    return [tower, *(part for part in models if part is not tower and part.main_input_name == "pixel_values")]


def lora_targets(model: Any, settings: TrainSettings) -> list[str]:
    """The names of the linear layers, and of the weights of experts, that get an adapter; none without LoRA.

    By default those of the language model, but for its head and what chooses among experts. Raises SettingError when
    the setting `lora_targets` matches nothing.
    """
    if not settings.lora_rank:
        return []
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    experts = [name for name, weight in _experts(model).items() if weight.ndim == 3 and weight.is_floating_point()]
    pattern = settings.lora_targets
    if pattern is None:
        decoder = set(model.get_decoder().modules())
        decoder -= {part.get_output_embeddings() for part in model.modules() if isinstance(part, PreTrainedModel)}
        return [name for name, module in linear.items() if module in decoder and not _ROUTER.search(name)] + experts
    targets = [name for name in (*linear, *experts) if re.fullmatch(pattern, name)]
    if not targets:
        raise SettingError(f"lora_targets {pattern!r} matches none of the linear layers, such as {list(linear)[-1]!r}")
    return targets


def _experts(model: Any) -> dict[str, nn.Parameter]:
    """The weights of the language model that hold all experts of a layer in one tensor, by their names."""
    decoder = set(model.get_decoder().modules())
    return {
        f"{path}.{name}": weight
        for path, module in model.named_modules()
        if module in decoder
        and not isinstance(module, nn.Linear)
        and "expert" in f"{path} {type(module).__name__}".lower()
        for name, weight in module.named_parameters(recurse=False)
        if weight.ndim > 1 and "bias" not in name
    }
