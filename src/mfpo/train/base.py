"""The model that is trained: a folder, or a model in memory, saved first, as stages open folders."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from mfpo.errors import MfpoError
from mfpo.folders import writing
from mfpo.models import save_as_on_hub

MODEL_IN_MEMORY = "the model in memory"


def check_base(model: Any) -> None:
    """Raises MfpoError when a model in memory cannot be trained."""
    if isinstance(model, PeftModel) or not isinstance(model, PreTrainedModel):
        raise MfpoError(f"the model is a {type(model).__name__}; give a folder, or a merged transformers model")


def save_model(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    """Save both as `folder`, which appears whole or not at all, unless an earlier try has."""
    if folder.exists():
        return
    partial = folder.with_suffix(".partial")
    with writing(MODEL_IN_MEMORY, folder.parent):
        save_as_on_hub(model, partial)
        processor.save_pretrained(partial)
        partial.rename(folder)


def title(model: Path | PreTrainedModel) -> str:
    """The model's name on the card, without this machine's folders."""
    if isinstance(model, Path):
        return model.resolve().name
    return Path(model.name_or_path).name or type(model).__name__
