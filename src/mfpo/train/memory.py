"""The memory that a training step takes at its peak, estimated from the model's shape by a formula.

All in bytes. What the allocator rounds up, passes without a gradient and CUDA itself take comes on top; the projector's
activations and those of a vision tower that is trained are not counted.
"""

from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from mfpo.logprobs.prefix import shares_prefix
from mfpo.logprobs.sequences import logits_at_once
from mfpo.train.objectives import OBJECTIVES
from mfpo.train.settings import TrainSettings

# Of a weight in doubly quantized NF4: 4 bits, 8 for each block of 64, 32 for each 256 blocks (Dettmers et al. 2023).
_NF4 = 1 / 2 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Memory:
    """Bytes by part.

    `activations` are what is kept for the backward pass: of the layers, of the logits and, in mixed precision, the
    rounded copies of the trained weights; `working` is what the layer takes that the backward pass has come to.
    """

    weights: float
    reference: float
    optimizer: float
    gradients: float
    activations: float
    working: float
    accumulates: bool

    @property
    def peak(self) -> float:
        """Gradients come as activations go, so that the larger of them counts; both if gradients are accumulated."""
        standing = self.weights + self.reference + self.optimizer
        moving = (self.gradients, self.activations)
        return standing + (sum(moving) if self.accumulates else max(moving)) + self.working


def estimate(policy: Any, batch: dict[str, Tensor], settings: TrainSettings, *, bf16: bool) -> Memory:
    """The memory of a step on `batch`, of `Pairs.collate`; `bf16` as on a GPU, else in float32.

    The optimizer's state is that of AdamW, in 8 bits where `optim` says so.

    Nothing of `policy` is read but shapes and which weights are trained: it may be on the meta device.
    """
    method = OBJECTIVES[settings.method]
    base = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    trained = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
    everything = sum(weight.numel() for weight in base.parameters())
    has_second_model = "reference" in method.inputs and not settings.lora_rank
    layer_activations, working = _layers(base, batch, settings, bf16=bf16)
    return Memory(
        weights=_weights(policy, settings, bf16=bf16),
        reference=4 * everything if has_second_model else 0,
        optimizer=(2 if "8bit" in (settings.optim or "") else 8) * trained,
        gradients=4 * trained,
        activations=layer_activations + _logits(base, batch, settings, bf16=bf16) + (2 * trained if bf16 else 0),
        working=working,
        accumulates=settings.gradient_accumulation_steps > 1,
    )


def _weights(policy: Any, settings: TrainSettings, *, bf16: bool) -> float:
    """float32, but for a base of adapters, which is in bfloat16 on a GPU, and its linear layers in 4 bits if asked."""
    head = policy.get_output_embeddings()
    linear = {id(module.weight) for module in policy.modules() if isinstance(module, nn.Linear) and module is not head}
    size, plain = 0.0, 2 if bf16 else 4
    for weight in policy.parameters():
        if weight.requires_grad or not settings.lora_rank:
            size += 4 * weight.numel()
        elif settings.quantize_4bit:
            size += (_NF4 if id(weight) in linear else plain) * weight.numel()
        else:
            size += plain * weight.numel()
    return size


def _layers(base: Any, batch: dict[str, Tensor], settings: TrainSettings, *, bf16: bool) -> tuple[float, float]:
    """What the language model's layers keep for the backward pass, and what one of them takes in it.

    That is as much as it keeps, for the gradients; with checkpointing, by which layers keep their input alone, twice.
    """
    text = base.config.get_text_config()
    tokens = int((batch["documents"] >= 0).sum()) if shares_prefix(base) else batch["input_ids"].numel()
    layer = tokens * layer_bytes(text, is_whole=not settings.lora_rank, bf16=bf16)
    if settings.gradient_checkpointing:
        between_layers = 2 if bf16 and settings.lora_rank else 4
        return tokens * text.num_hidden_layers * between_layers * text.hidden_size, 2 * layer
    return text.num_hidden_layers * layer, layer


def layer_bytes(text: Any, *, is_whole: bool, bf16: bool) -> int:
    """What a layer of the language model of configuration `text` keeps of each token for the backward pass.

    With h its width, q and k those of all queries and keys, m the inner one of the experts that a token goes through,
    and c the bytes of a number: c (2h + 3q + 2k + 4m) for the inputs of the linear layers, queries, keys, values, what
    attention gives, in its own order and in that of the tokens, and the gated product's four tensors; 8h for the inputs
    of two norms, which are float32, and as much again for what they scale if their weights are trained. In mixed
    precision each of the five linear layers that read a norm's output keeps a rounded copy of its own: 5h for 2h.
    """
    width, number = text.hidden_size, 2 if bf16 else 4
    head = getattr(text, "head_dim", None) or width // text.num_attention_heads
    queries = head * text.num_attention_heads
    keys = head * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    norms = 8 * width * (2 if is_whole else 1)
    inputs = (5 if bf16 else 2) * width
    return norms + number * (inputs + 3 * queries + 2 * keys + 4 * _inner_width(text))


def _inner_width(text: Any) -> int:
    experts = getattr(text, "num_experts_per_tok", None)
    return (
        experts * getattr(text, "moe_intermediate_size", text.intermediate_size) if experts else text.intermediate_size
    )


def _logits(base: Any, batch: dict[str, Tensor], settings: TrainSettings, *, bf16: bool) -> float:
    """Logits in float32, their log-softmax and its gradient: of a chunk at a time or, if the method reads them, of all.

    Without shared prefixes also the logits of all places from the first answer on, as the model itself makes them, and
    their gradient.
    """
    method, vocabulary = OBJECTIVES[settings.method], base.config.get_text_config().vocab_size
    tokens = int(batch["answer_mask"].sum())
    chunk = tokens if method.reads_logits else min(tokens, logits_at_once(base))
    size = 3 * 4 * chunk * vocabulary
    if "reference" in method.inputs:
        size += 4 * tokens * vocabulary
    if not shares_prefix(base):
        rows, length = batch["input_ids"].shape
        first = int((batch["predictors"][batch["answer_mask"]] % length).min())
        size += 2 * (2 if bf16 else 4) * rows * (length - first) * vocabulary
    return size
