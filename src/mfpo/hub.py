"""Find models and datasets by folder or Hub name, and check their files, without torch."""

import os
import re
from collections.abc import Collection
from pathlib import Path

from mfpo.errors import MfpoError, first_line
from mfpo.files import read_json

# Everything that a model needs and nothing that could run: no pickles, no code.
_SAFE_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


# The endings of files that hold rows, which no dataset's name has.
DATA_FILES = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")
# Those of images.
IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def is_hub_name(name: str) -> bool:
    """Whether `name` is the Hub's `owner/name` of a dataset, and nothing on this disk."""
    return bool(_HUB_NAME.fullmatch(name)) and not name.endswith(DATA_FILES) and not os.path.exists(name)


def find_model(name: str, *, revision: str | None = None) -> Path:
    """The folder of a model: `name` itself, or, if there is no such folder, the download of the Hub's `owner/name`.

    Raises MfpoError when it is neither.
    """
    # Not by Path, which raises an error where a name is too long.
    if os.path.isdir(name) or not _HUB_NAME.fullmatch(name):
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_SAFE_FILES))
    except (OSError, HfHubHTTPError) as error:
        reason = first_line(error)
        raise MfpoError(f"{name}: no such folder, and it could not be downloaded from the Hub ({reason})") from None


def check_model_files(path: Path) -> None:
    """Raises MfpoError when there is no model or adapter in the folder, or one that is not in safetensors."""
    if (path / "adapter_config.json").is_file():
        if not (path / "adapter_model.safetensors").is_file():
            raise MfpoError(f"{path}: no adapter_model.safetensors there; nothing else is loaded")
        return
    if not path.is_dir():
        raise MfpoError(
            f"{path}: no such folder; give a model's folder, a name on the Hub, picturebook or picturebook-context"
        )
    if not (path / "config.json").is_file():
        if any((path / "model" / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise MfpoError(f"{path}: is the folder of a run; give its model, {path / 'model'}")
        raise MfpoError(f"{path}: no model there (no config.json); give a folder written by save_pretrained")
    if not any(path.glob("*.safetensors")):
        raise MfpoError(f"{path}: no *.safetensors there; nothing else is loaded, so save the weights as safetensors")


def check_kind(path: Path, kinds: Collection[str]) -> str:
    """The model's model_type. Raises MfpoError when it is none of `kinds`, and as `check_model_files`."""
    check_model_files(path)
    config = read_json(path / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in kinds:
        raise MfpoError(f"{path}: is a {kind!r} model, but must be {' or '.join(kinds)}")
    return str(kind)
