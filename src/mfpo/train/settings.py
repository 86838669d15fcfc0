"""The settings of training, each with the source of its default."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import mfpo.train.methods  # noqa: F401, registers them
from mfpo.errors import SettingError
from mfpo.settings import setting
from mfpo.train.objectives import OBJECTIVES, keyword_defaults


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What `mfpo train` can be told. Raises SettingError with all that is wrong."""

    method: str = setting("mfpo", "preference objective: mfpo (section 3.2) or one of docs/methods.md")
    beta: float | None = setting(None, "weight of a log-ratio in a reward; null: 0.1, usual for RLHF-V data; ddpo 0.5")
    eta: float | None = setting(None, "mfpo: reward that the chosen answer must exceed; null: 0, the best in Table 5")
    gamma: float | None = setting(None, "ddpo: weight of a changed token; null: 5")
    normalize: bool | None = setting(None, "ddpo: divide an answer's sum by its weights' sum; null: true")
    lm_weight: float | None = setting(None, "ha-dpo: weight of the language-model term; null: 0.5")
    kl_weight: float | None = setting(None, "halva: weight of the divergence from the reference; null: 0.4")
    temperature: float | None = setting(None, "hacl: temperature of the contrast; null: 0.07")
    contrast_weight: float | None = setting(None, "hacl: weight of the contrast; null: 1")
    all_hallucinated: bool | None = setting(None, "hacl: contrast with all y_l of the batch, as released; null: false")
    text_weight: float = setting(1.0, "weight of the text term; 1:1:1 is the paper's best (Table 6)")
    image_weight: float = setting(1.0, "weight of the image term (Table 6)")
    margin_weight: float = setting(1.0, "weight of the margin term (Table 6)")
    curriculum: bool | None = setting(None, "train on easy, then medium, then hard (section 3.3); null: mfpo only")
    reset_reference: bool = setting(False, "each stage's reference is the model that it starts from, not the first one")
    rerank: bool = setting(
        False, "rank the records that are left anew before each stage, by the model that it starts from"
    )
    keep_stages: bool = setting(False, "keep the models that the earlier stages ended with, in RUN/stages (Figure 5)")
    learning_rate: float | None = setting(None, "peak rate; null: 5e-7 for the whole model, 5e-6 for LoRA, as peers")
    warmup_ratio: float = setting(0.03, "share of a stage's steps in which the rate rises, as RLHF-V; then a cosine")
    epochs: int = setting(3, "passes over the records of each stage; not in the paper, usual for RLHF-V data")
    batch_size: int = setting(8, "records in one forward pass")
    gradient_accumulation: int = setting(1, "forward passes in one step of the optimizer")
    lora_rank: int = setting(0, "rank of LoRA adapters; 0 trains the whole model, peers use 128")
    lora_alpha: int | None = setting(None, "scale of LoRA adapters; null: twice the rank, as peers")
    lora_targets: str | None = setting(None, "regular expression of modules; null: linear layers of the language model")
    quantize_4bit: bool = setting(False, "LoRA on a base in 4 bits (QLoRA); needs a GPU and bitsandbytes")
    train_vision_tower: bool = setting(False, "train the vision tower too; it stays frozen otherwise")
    vision_cache: bool = setting(False, "keep the frozen vision tower's features of each image in DATA/.vision")
    max_length: int = setting(2048, "tokens of prompt, images and answer; an answer's end beyond it is cut")
    seed: int = setting(0, "seed of the order of records and of new adapters")
    bf16: bool = setting(True, "compute in bfloat16 on a GPU; a CPU always computes in float32")
    attention: Literal["sdpa", "flex_attention"] | None = setting(
        None, "of the language model where prompts are shared; null: flex_attention on a GPU (not yet run), else sdpa"
    )
    gradient_checkpointing: bool = setting(False, "recompute activations to save memory")
    logging_steps: int = setting(10, "steps that a line of metrics.jsonl averages over")
    save_steps: int = setting(100, "steps between two checkpoints; a multiple of logging_steps")
    report_to: str = setting("none", "tracker that transformers reports to as well, such as tensorboard or wandb")

    def __post_init__(self) -> None:
        faults = []
        if self.method not in OBJECTIVES:
            faults.append(f"no method is named {self.method!r}; there are {', '.join(sorted(OBJECTIVES))}")
        else:
            faults += self._unused()
            terms = OBJECTIVES[self.method].terms
            if not any(getattr(self, f"{term}_weight", None) != 0 for term in terms):
                faults.append(f"the weights of {', '.join(terms)} are all 0, so that there is nothing to train on")
        for name in ("epochs", "batch_size", "gradient_accumulation", "max_length", "logging_steps", "save_steps"):
            if getattr(self, name) < 1:
                faults.append(f"{name} is {getattr(self, name)}, but must be at least 1")
        for name in ("beta", "gamma", "temperature", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                faults.append(f"{name} is {value}, but must be above 0")
        for name in ("text_weight", "image_weight", "margin_weight", "lm_weight", "kl_weight", "contrast_weight"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                faults.append(f"{name} is {value}, but must be 0 or more")
        if self.eta is not None and not math.isfinite(self.eta):
            faults.append(f"eta is {self.eta}, but must be a number")
        if self.seed < 0:
            faults.append(f"seed is {self.seed}, but must be 0 or more")
        if not 0 <= self.warmup_ratio < 1:
            faults.append(f"warmup_ratio is {self.warmup_ratio}, but must be from 0 to below 1")
        if self.logging_steps > 0 and self.save_steps % self.logging_steps:
            # Else a resumed run would average its first line of metrics over fewer steps.
            faults.append(f"save_steps is {self.save_steps}, but must be a multiple of logging_steps")
        if self.lora_rank < 0:
            faults.append(f"lora_rank is {self.lora_rank}, but must be 0 or more")
        if self.lora_targets is not None and not self.lora_rank:
            faults.append("lora_targets names what gets an adapter, but lora_rank is 0; set lora_rank too")
        if self.quantize_4bit and not self.lora_rank:
            faults.append("quantize_4bit is for adapters, but lora_rank is 0; set lora_rank too")
        if self.vision_cache and self.train_vision_tower:
            faults.append("vision_cache keeps what a frozen vision tower computes, but train_vision_tower is true")
        if self.lora_rank and self.train_vision_tower:
            faults.append("train_vision_tower trains whole layers; with lora_rank name them in lora_targets instead")
        if faults:
            raise SettingError("; ".join(faults))

    def _unused(self) -> list[str]:
        """What is set although the method has no use for it."""
        method = OBJECTIVES[self.method]
        options = {name for known in OBJECTIVES.values() for name in known.options}
        faults = [
            f"{name} is {getattr(self, name)}, but method {self.method} has no {name}"
            for name in sorted(options - method.options.keys())
            if getattr(self, name, None) is not None
        ]
        for term in ("text", "image", "margin"):
            weight = getattr(self, f"{term}_weight")
            if weight != 1.0 and term not in method.terms:
                faults.append(f"{term}_weight is {weight}, but method {self.method} has no {term} term")
        is_staged = method.is_staged if self.curriculum is None else self.curriculum
        for name in ("reset_reference", "rerank"):
            if getattr(self, name) and not is_staged:
                faults.append(f"{name} is for stages from easy to hard; set curriculum=true too")
        if self.reset_reference and "reference" in method.inputs:
            faults.append(f"reset_reference is not for method {self.method}, whose reference is the first model")
        return faults

    def options_of(self, function: Callable[..., Any]) -> dict[str, Any]:
        """The keyword arguments of a method's function: settings of the same name, or else its defaults."""
        given = {name: getattr(self, name, None) for name in keyword_defaults(function)}
        return {name: keyword_defaults(function)[name] if value is None else value for name, value in given.items()}

    def resolved(self) -> "TrainSettings":
        """The settings with each null replaced by what it stands for, but for other methods' and `lora_targets`."""
        method = OBJECTIVES[self.method]
        options = self.options_of(method.losses) | (self.options_of(method.weigh) if method.weigh else {})
        return replace(
            self,
            **{name: value for name, value in options.items() if hasattr(self, name)},
            curriculum=method.is_staged if self.curriculum is None else self.curriculum,
            learning_rate=(5e-6 if self.lora_rank else 5e-7) if self.learning_rate is None else self.learning_rate,
            lora_alpha=2 * self.lora_rank or None if self.lora_alpha is None else self.lora_alpha,
        )
