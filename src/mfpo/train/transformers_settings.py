"""The fields of transformers' `TrainingArguments` that are settings of `mfpo train`, and why the others are not.

Their names stand here, so that a wrong one is told before torch is imported; a test compares them with transformers'.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from mfpo.settings import ChosenSettings, setting


@dataclass(frozen=True, kw_only=True)
class TransformersSettings(ChosenSettings):
    """The fields that are passed on; null leaves the default of transformers.

    https://huggingface.co/docs/transformers/main_classes/trainer explains them.
    """

    adam_beta1: float | None = setting(None, "", least=0, below=1)
    adam_beta2: float | None = setting(None, "", least=0, below=1)
    adam_epsilon: float | None = setting(None, "", above=0)
    dataloader_num_workers: int | None = setting(None, "", least=0)
    dataloader_persistent_workers: bool | None = setting(None, "")
    dataloader_pin_memory: bool | None = setting(None, "")
    dataloader_prefetch_factor: int | None = setting(None, "", least=1)
    ddp_backend: str | None = setting(None, "")
    ddp_broadcast_buffers: bool | None = setting(None, "")
    ddp_bucket_cap_mb: int | None = setting(None, "", least=1)
    ddp_find_unused_parameters: bool | None = setting(None, "")
    ddp_static_graph: bool | None = setting(None, "")
    ddp_timeout: int | None = setting(None, "", least=1)
    debug: str | None = setting(None, "")
    disable_tqdm: bool | None = setting(None, "")
    eval_delay: float | None = setting(None, "", least=0)
    eval_on_start: bool | None = setting(None, "")
    full_determinism: bool | None = setting(None, "")
    gradient_checkpointing_kwargs: dict | None = setting(None, "")
    hub_model_id: str | None = setting(None, "")
    hub_private_repo: bool | None = setting(None, "")
    hub_revision: str | None = setting(None, "")
    log_level: str | None = setting(None, "")
    log_level_replica: str | None = setting(None, "")
    log_on_each_node: bool | None = setting(None, "")
    logging_first_step: bool | None = setting(None, "")
    lr_scheduler_kwargs: dict | None = setting(None, "")
    max_grad_norm: float | None = setting(None, "", least=0)
    optim: str | None = setting(None, "")
    optim_args: str | None = setting(None, "")
    optim_target_modules: str | None = setting(None, "")
    per_device_eval_batch_size: int | None = setting(None, "", least=1)
    project: str | None = setting(None, "")
    push_to_hub: bool | None = setting(None, "")
    run_name: str | None = setting(None, "")
    skip_memory_metrics: bool | None = setting(None, "")
    torch_compile: bool | None = setting(None, "")
    torch_compile_backend: str | None = setting(None, "")
    torch_compile_mode: str | None = setting(None, "")
    torch_empty_cache_steps: int | None = setting(None, "", least=1)
    trackio_bucket_id: str | None = setting(None, "")
    trackio_space_id: str | None = setting(None, "")
    trackio_static_space_id: str | None = setting(None, "")
    weight_decay: float | None = setting(None, "", least=0)

    def shown(self) -> dict[str, Any]:
        """All settings by name, of those of transformers only what was given."""
        values = dataclasses.asdict(self)
        of_transformers = {name: value for name in _passed_on() if (value := values.pop(name)) is not None}
        return values | of_transformers

    def passed_on(self) -> dict[str, Any]:
        """The fields of `TrainingArguments` that were given and go there as they are."""
        # The finished model is pushed, by ourselves, and not the checkpoints of each stage.
        names = [name for name in _passed_on() if name not in HUB]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def _passed_on() -> list[str]:
    return [field.name for field in dataclasses.fields(TransformersSettings)]


HUB = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")

_STEP = "a step is the same on any machine: set per_device_train_batch_size and gradient_accumulation_steps"
_ORDER = "the seed alone decides the order of records, so that a killed run resumes with the same weights"
_RESUME = "a killed run resumes from its last checkpoint by repeating its command"
_STEPS = "logging_steps, save_steps and eval_steps count steps, so that a resumed run logs the same lines"
_PRECISION = "policy and reference compute in the same precision; set bf16"
_FORWARD = "policy and reference would no longer compute the same"
_LAUNCH = "give it to `accelerate launch` (docs/scaling.md)"
_EVAL = "eval=DATA eval_steps=N measures held-out pairs and keeps no predictions"
_BEST = "keep_best=eval/NAME keeps the best model"
_PUSH = "push_to_hub=true pushes the finished model, once"
_HERE = "it is for the scripts of transformers; `mfpo train` always trains"
_PROCESSES = "all processes write to one --out"

# The other fields, with the reason why each is refused.
REFUSED = {
    "accelerator_config": _STEP,
    "activation_checkpointing": "it is called gradient_checkpointing here, as in every version of transformers",
    "activation_checkpointing_kwargs": "they are called gradient_checkpointing_kwargs",
    "auto_find_batch_size": _STEP,
    "average_tokens_across_devices": "a step's loss is the mean over its records, on all devices together",
    "batch_eval_metrics": _EVAL,
    "bf16_full_eval": _PRECISION,
    "data_seed": _ORDER,
    "dataloader_drop_last": "no record is left out",
    "dataloader_in_order": _ORDER,
    "dataloader_multiprocessing_context": "workers are forked, as they read images that are encoded already",
    "deepspeed": _LAUNCH,
    "do_eval": _HERE,
    "do_predict": _HERE,
    "do_train": _HERE,
    "enable_jit_checkpoint": "Ctrl-C and SIGTERM save a checkpoint anyway",
    "eval_accumulation_steps": _EVAL,
    "eval_do_concat_batches": _EVAL,
    "eval_strategy": _EVAL,
    "eval_use_gather_object": _EVAL,
    "fp16": _PRECISION,
    "fp16_full_eval": _PRECISION,
    "fsdp": _LAUNCH,
    "fsdp_config": _LAUNCH,
    "greater_is_better": _BEST,
    "hub_always_push": _PUSH,
    "hub_strategy": _PUSH,
    "hub_token": "a token would be written to config.yaml; log in with `hf auth login`, or set HF_TOKEN",
    "ignore_data_skip": _RESUME,
    "include_for_metrics": _EVAL,
    "include_num_input_tokens_seen": "tokens/per_second and tokens/saved count tokens",
    "label_names": "records have no labels",
    "label_smoothing_factor": "the losses are those of the method, which has no labels; see eta of mfpo",
    "length_column_name": _ORDER,
    "liger_kernel_config": _FORWARD,
    "load_best_model_at_end": _BEST,
    "local_rank": "the launcher sets it",
    "logging_nan_inf_filter": "a loss that is not finite ends the run",
    "logging_strategy": _STEPS,
    "metric_for_best_model": _BEST,
    "neftune_noise_alpha": _FORWARD,
    "output_dir": "--out names the folder",
    "parallelism_config": _LAUNCH,
    "prediction_loss_only": _EVAL,
    "remove_unused_columns": "records are encoded from all the columns that their method reads",
    "restore_callback_states_from_checkpoint": _RESUME,
    "resume_from_checkpoint": _RESUME,
    "save_on_each_node": _PROCESSES,
    "save_only_model": "a run that is killed resumes with its optimizer",
    "save_strategy": _STEPS,
    "tf32": _PRECISION,
    "train_sampling_strategy": _ORDER,
    "use_cache": "a training pass reads every token once",
    "use_cpu": "the device is the GPU if there is one; hide it with CUDA_VISIBLE_DEVICES=",
    "use_liger_kernel": _FORWARD,
    # Of earlier versions of transformers.
    "warmup_ratio": "it is called warmup_steps, which below 1 is a share of the steps",
}
