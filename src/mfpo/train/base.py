"""The model that is trained: a folder, or a model in memory, saved first, as stages open folders."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from mfpo.errors import MfpoError
from mfpo.folders import fingerprint, writing

IN_MEMORY = "the model in memory"


def check_model(model: Any, processor: Any) -> None:
    """Raises MfpoError when a model in memory cannot be trained."""
    if isinstance(model, PeftModel) or not isinstance(model, PreTrainedModel):
        raise MfpoError(f"the model is a {type(model).__name__}; give a folder, or a model of transformers, merged")
    if processor is None:
        raise MfpoError("a model in memory needs its processor; give processor=AutoProcessor.from_pretrained(...)")


def model_hash(model: PreTrainedModel, processor: Any) -> str:
    """A hash of the weights, the configuration and the processor, whichever files they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    with TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        digest.update(fingerprint(Path(folder), "*").encode())
    return digest.hexdigest()


def save_model(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    """Save both as `folder`, which appears whole or not at all, unless an earlier try has."""
    if folder.exists():
        return
    partial = folder.with_suffix(".partial")
    with writing("the model in memory", folder.parent):
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        partial.rename(folder)


def title(model: Path | PreTrainedModel) -> str:
    """The model's name on the card, without this machine's folders."""
    if isinstance(model, Path):
        return model.resolve().name
    return Path(model.name_or_path).name or type(model).__name__
