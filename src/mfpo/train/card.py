"""The model card of a trained model."""

import json
import re
from pathlib import Path

import yaml

from mfpo.folders import versions
from mfpo.train.settings import TrainSettings

_FIGURES = ("loss", "rewards/margins", "rewards/accuracies", "rewards/image_margins", "rewards/image_accuracies")


def model_card(*, hub: str | None, base: str, data: str, settings: TrainSettings, metrics: Path) -> str:
    """The README.md of a model trained from `base`, or `hub` on the hub, on `data`; `metrics` is a file."""
    base = hub or base
    head = {
        **({"base_model": hub} if hub else {}),
        "library_name": "peft" if settings.lora_rank else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": sorted({"mfpo", settings.method, "preference-optimization"}),
    }
    text = metrics.read_text(encoding="utf-8") if metrics.exists() else ""
    last = {line["stage"]: line for line in map(json.loads, text.splitlines()) if "loss" in line}
    figures = [name for name in _FIGURES if any(name in line for line in last.values())]
    rows = [[stage, str(line["step"]), *(f"{line[name]:.4f}" for name in figures)] for stage, line in last.items()]
    shown = settings.shown() | {"eval": settings.eval and Path(settings.eval).name}  # without this machine's folders
    kind = f"A LoRA adapter of rank {settings.lora_rank} for" if settings.lora_rank else "All of"
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
            f"# {base} trained with {settings.method}\n",
            f"{kind} `{base}`, trained on the preferences in `{data}` with mfpo.\n",
            "## Figures\n",
            "At the end of each stage: means over the records since the previous log line.\n",
            *_table(["stage", "step", *figures], rows),
            "\n## Settings\n",
            *_table(["setting", "value"], [[name, str(value)] for name, value in shown.items()]),
            "\n## Versions\n",
            *_table(["package", "version"], [list(item) for item in versions().items()]),
            "",
        ]
    )


def hub_name(model: Path) -> str | None:
    """The `owner/name` of a model in the hub's cache; None for any other folder.

    >>> hub_name(Path("hub/models--llava-hf--llava-1.5-7b-hf/snapshots/b234"))
    'llava-hf/llava-1.5-7b-hf'
    """
    match = re.search(r"models--([^/]+?)--([^/]+)/snapshots/", model.as_posix())
    return f"{match[1]}/{match[2]}" if match else None


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]
