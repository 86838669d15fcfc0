"""The settings of training, each with the source of its default; a method adds its own."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from mfpo.errors import brief, nearest
from mfpo.settings import setting
from mfpo.train.objectives import OBJECTIVES
from mfpo.train.transformers_settings import REFUSED, TransformersSettings

# Figures of held-out pairs, and whether more of it is better; terms of a loss are found out by the method.
_IS_MORE_BETTER = {
    "loss": False,
    "image_dependence": True,
    "rewards/chosen": True,
    "rewards/rejected": False,
    "rewards/margins": True,
    "rewards/accuracies": True,
    "rewards/image_rejected": False,
    "rewards/image_margins": True,
    "rewards/image_accuracies": True,
    "logps/chosen": True,
    "logps/rejected": False,
    "logps/image_rejected": False,
}

# What was called otherwise before, in scripts and in config.yaml of earlier versions.
_FORMER = {
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "gradient_accumulation": "gradient_accumulation_steps",
}


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TransformersSettings):
    """Settings of `mfpo train`: the general ones below, the method's, and those that are passed on to transformers.

    The method's are the keyword arguments of its functions, and for each of its terms a `TERM_weight`. What
    transformers has too has the name that it has there.
    """

    choice = "method"
    known = OBJECTIVES
    refused = REFUSED
    former = _FORMER

    method: str = setting("mfpo", "preference objective: mfpo (section 3.2) or one of docs/methods.md")
    curriculum: bool | None = setting(None, "train on easy, then medium, then hard (section 3.3); null: mfpo only")
    reset_reference: bool = setting(False, "use the model at the start of each stage as its reference")
    rerank: bool = setting(False, "rank the remaining records again before each stage, with the current model")
    keep_stages: bool = setting(False, "keep the model of every earlier stage in RUN/stages (Figure 5)")
    learning_rate: float | None = setting(
        None, "peak rate; null: 5e-7, with LoRA 5e-6, as in published trainings on RLHF-V's data", above=0
    )
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "cosine_with_min_lr",
        "cosine_warmup_with_min_lr",
        "warmup_stable_decay",
    ] = setting("cosine", "schedule of the rate after the warm-up of a stage, as in RLHF-V")
    warmup_steps: float = setting(
        0.03, "warm-up steps of a stage; below 1: a share of its steps, as in RLHF-V", least=0
    )
    num_train_epochs: float = setting(
        3, "passes over the records of each stage; not in the paper, usual for RLHF-V data", above=0
    )
    max_steps: int | None = setting(None, "total steps of all stages, instead of num_train_epochs", least=1)
    per_device_train_batch_size: int = setting(8, "records in one forward pass", least=1)
    gradient_accumulation_steps: int = setting(1, "forward passes per optimizer step", least=1)
    lora_rank: int = setting(0, "rank of LoRA adapters; 0: full training; 128 is usual", least=0)
    lora_alpha: int | None = setting(None, "scale of LoRA adapters; null: twice the rank, as usual", above=0)
    lora_targets: str | None = setting(None, "regular expression of modules; null: linear layers of the language model")
    quantize_4bit: bool = setting(False, "LoRA on a base in 4 bits (QLoRA); needs bitsandbytes")
    train_vision_tower: bool = setting(False, "train the vision tower too; it stays frozen otherwise")
    vision_cache: bool = setting(False, "cache the frozen vision tower's features in DATA/.vision")
    max_length: int = setting(2048, "maximum tokens of prompt, images and answer; truncates longer answers", least=1)
    seed: int = setting(0, "seed of the order of records and of new adapters", least=0)
    bf16: bool = setting(True, "compute in bfloat16 on a GPU; a CPU always computes in float32")
    attention: Literal["sdpa", "flex_attention"] | None = setting(
        None,
        "of the language model if prompts are shared; null: flex_attention on a GPU, else sdpa",
    )
    gradient_checkpointing: bool = setting(False, "recompute activations to save memory")
    logging_steps: int = setting(10, "steps averaged in each line of metrics.jsonl", least=1)
    save_steps: int = setting(100, "steps between checkpoints; a multiple of logging_steps", least=1)
    save_total_limit: int | None = setting(1, "checkpoints kept while a stage runs; null: all", least=1)
    report_to: str = setting("none", "additional tracker, such as tensorboard or wandb")
    eval: str | None = setting(None, "folder of held-out pairs, measured every eval_steps and at the end of each stage")
    eval_steps: int | None = setting(None, "steps between evaluations; null: save_steps", least=1)
    keep_best: str | None = setting(
        None, "figure of held-out pairs that chooses the run's model, such as eval/rewards/accuracies; null: the last"
    )

    @classmethod
    def brought(cls, name: str) -> tuple[tuple[Callable[..., Any], ...], tuple[str, ...]]:
        """The functions of a method, and the terms that it does not weigh itself."""
        return OBJECTIVES[name].functions, OBJECTIVES[name].weighted_terms

    @classmethod
    def is_unset(cls, name: str, value: Any) -> bool:
        """Whether it says nothing, as config.yaml of earlier versions has it for the settings of other methods."""
        is_other_weight = name in ("text_weight", "image_weight", "margin_weight") and cls.misplaced(name, value)
        return super().is_unset(name, value) or bool(is_other_weight and value == 1)

    def faults(self) -> list[str]:
        """Contradictions between settings."""
        faults = []
        method = OBJECTIVES[self.method]
        if not any(getattr(self, f"{term}_weight", None) != 0 for term in method.terms):
            faults.append(f"the weights of {', '.join(method.terms)} are all 0, so there is nothing to train on")
        is_staged = method.is_staged if self.curriculum is None else self.curriculum
        for name in ("reset_reference", "rerank"):
            if getattr(self, name) and not is_staged:
                faults.append(f"{name} is for stages from easy to hard; set curriculum=true too")
        if self.reset_reference and "reference" in method.inputs:
            faults.append(f"reset_reference is not for method {self.method}, whose reference is the first model")
        if self.logging_steps > 0 and self.save_steps % self.logging_steps:
            # Else a resumed run would average its first line of metrics over fewer steps.
            faults.append(f"save_steps is {self.save_steps}, but must be a multiple of logging_steps")
        if self.lora_targets is not None:
            faults += self._faults_of_targets(self.lora_targets)
        if self.lora_alpha is not None and not self.lora_rank:
            faults.append("lora_alpha scales adapters, but lora_rank is 0; set lora_rank too")
        if self.quantize_4bit and not self.lora_rank:
            faults.append("quantize_4bit is for adapters, but lora_rank is 0; set lora_rank too")
        if self.vision_cache and self.train_vision_tower:
            faults.append("vision_cache keeps what a frozen vision tower computes, but train_vision_tower is true")
        if self.lora_rank and self.train_vision_tower:
            faults.append("train_vision_tower trains whole layers; with lora_rank name them in lora_targets instead")
        return faults + method.faults(vars(self)) + self._faults_of_eval()

    def _faults_of_targets(self, targets: str) -> list[str]:
        try:
            re.compile(targets)
        except re.error as error:
            return [f"lora_targets is no regular expression ({error}); write .*q_proj, not *q_proj"]
        if not self.lora_rank:
            return ["lora_targets names what gets an adapter, but lora_rank is 0; set lora_rank too"]
        return []

    def _faults_of_eval(self) -> list[str]:
        of_eval = ("eval_steps", "keep_best", "eval_on_start", "eval_delay", "per_device_eval_batch_size")
        faults = [
            f"{name} is for held-out pairs; set eval=DATA too"
            for name in of_eval
            if getattr(self, name) and self.eval is None
        ]
        figures = [f"eval/{name}" for name in self.is_more_better()]
        if self.keep_best is not None and self.keep_best not in figures:
            faults.append(
                f"keep_best: there is no figure named {brief(self.keep_best)}; {nearest(self.keep_best, figures)}"
            )
        elif (
            self.keep_best and self.reset_reference and not self.keep_best.startswith(("eval/logps", "eval/image_dep"))
        ):
            faults.append(
                f"keep_best={self.keep_best} would compare rewards over different references, as reset_reference gives "
                "each stage its own; use eval/image_dependence or eval/logps/..."
            )
        return faults

    def is_more_better(self) -> dict[str, bool]:
        """The figures of held-out pairs that have a better direction (`rewards/balance` has none), and whether it is
        upwards.
        """
        return _IS_MORE_BETTER | {f"loss/{term}": False for term in OBJECTIVES[self.method].terms}

    def weights(self) -> dict[str, float]:
        """The weights of the terms that the method does not weigh itself, for `total`."""
        return {term: getattr(self, f"{term}_weight") for term in OBJECTIVES[self.method].weighted_terms}

    def resolved(self) -> "TrainSettings":
        """The settings with each null replaced by its meaning, where one can be told without the model."""
        return replace(
            self,
            curriculum=OBJECTIVES[self.method].is_staged if self.curriculum is None else self.curriculum,
            learning_rate=(5e-6 if self.lora_rank else 5e-7) if self.learning_rate is None else self.learning_rate,
            lora_alpha=2 * self.lora_rank or None if self.lora_alpha is None else self.lora_alpha,
            eval_steps=self.save_steps if self.eval and self.eval_steps is None else self.eval_steps,
        )
