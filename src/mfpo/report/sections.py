"""The sections of the pages, each made from one kind of file; a file that is absent makes no section."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import yaml
from markupsafe import Markup

from mfpo.errors import MfpoError, brief
from mfpo.images import decode_image, load_image
from mfpo.records import column
from mfpo.report import plots, scores
from mfpo.report.samples import Picture, evenly, picture, thumbnail
from mfpo.report.texts import Piece, cut, object_spans

EXAMPLES = 8

Logs = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Tile:
    """One figure to read at a glance."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class Panels:
    """Plots of one kind, one for each run, by the run's name."""

    title: str
    note: str
    plots: dict[str, Markup]


@dataclass(frozen=True)
class Example:
    """A held-out image and what each model says about it."""

    image: Picture
    name: str
    prompt: str
    captions: dict[str, list[Piece]]


def dataset_tiles(summary: Mapping[str, Any], count: int, fallbacks: int) -> list[Tile]:
    """What summary.json says, where there is one, and what the records themselves give."""
    said = {
        key: summary[key] for key in ("read", "set_aside", "area_destroyed", "keywords_per_record") if key in summary
    }
    shown = {
        "read": ("read", "", "{:,}"),
        "written": ("written", "", "{:,}"),
        "set_aside": ("set aside", "", "{:,}"),
        "fallback": ("fallback", "no keyword found a region", "{:.1%}"),
        "area_destroyed": ("area destroyed", "mean share of the image", "{:.1%}"),
        "keywords_per_record": ("keywords", "mean of a record", "{:.1f}"),
    }
    return _tiles(shown, said | {"written": count, "fallback": fallbacks / max(count, 1)})


def training_tiles(logs: Logs) -> list[Tile]:
    """Where a training run ended: the last line of its metrics."""
    last = next((rows[-1] for rows in logs.values() if rows), {})
    shown = {
        "step": ("steps", "", "{:,}"),
        "loss": ("loss", "last logged", "{:.3f}"),
        "rewards/accuracies": ("accuracy", "chosen above rejected", "{:.1%}"),
        "rewards/margins": ("margin", "chosen minus rejected", "{:.2f}"),
        "rewards/image_margins": ("image margin", "original minus rejected image", "{:.2f}"),
    }
    return _tiles(shown, last)


def _tiles(shown: Mapping[str, tuple[str, str, str]], values: Mapping[str, Any]) -> list[Tile]:
    """The `values` that are to be `shown` (key -> name, note, format), in that order."""
    return [
        Tile(form.format(values[key]).replace("%", " %"), name, note)
        for key, (name, note, form) in shown.items()
        if key in values
    ]


def bars(models: scores.Models) -> Markup | None:
    """The percentages of the table as bars."""
    columns = {
        metric.name: {name: figures[metric.key] for name, figures in models.items() if metric.key in figures}
        for metric in scores.measured(models)
        if metric.unit == "%"
    }
    if not columns:
        return None
    return plots.bars(columns, f"Bars of {', '.join(columns)} in percent for each model; the table has the figures")


def panels(logs: Logs) -> list[Panels]:
    """Rewards and losses over the steps, a panel for each run that logged them."""
    kinds = [
        ("Rewards", plots.REWARDS, "β times the log-ratio to the reference. The chosen answer should stay above 0."),
        ("Loss by term", plots.LOSSES, "Text and image start at log 2 ≈ 0.693, where the policy is the reference."),
    ]
    made = []
    for title, lines, note in kinds:
        logged = {name: rows for name, rows in logs.items() if any(key in row for row in rows for key in lines)}
        limits = plots.shared_limits(list(logged.values()), lines)
        drawn = {
            name: plots.curves(
                rows, lines, limits, f"{title} of {name} by training step; stages marked", wide=len(logged) == 1
            )
            for name, rows in logged.items()
        }
        made += [Panels(title, note, drawn)] if drawn else []
    return made


def examples(run: Path, models: Sequence[str]) -> list[Example]:
    """Held-out images at even distances, with the captions of all models, objects marked as there or not there.

    Raises MfpoError when an image that is shown has no line in annotations.jsonl.
    """
    annotations = run / "heldout" / "annotations.jsonl"
    files = {name: run / "answers" / f"{name}_captions.jsonl" for name in models}
    answers = {
        name: {row["question_id"]: row for row in read_jsonl(file)} for name, file in files.items() if file.exists()
    }
    if not answers or not annotations.exists():
        return []
    objects = {str(row["image_id"]): row["objects"] for row in read_jsonl(annotations)}
    questions = [key for key in next(iter(answers.values())) if all(key in given for given in answers.values())]
    made = []
    for key in (questions[index] for index in evenly(len(questions), EXAMPLES)):
        rows = {name: given[key] for name, given in answers.items()}
        image = next(iter(rows.values()))["image"]
        if image not in objects:
            raise MfpoError(f"{annotations}: no line has the image_id {brief(image)}, which the captions are about")
        small = thumbnail(decode_image(load_image(run / "heldout", image)))
        captions = {name: cut(row["text"], object_spans(row["text"], objects[image])) for name, row in rows.items()}
        made.append(Example(picture(small), image, next(iter(rows.values()))["prompt"], captions))
    return made


def histogram(dataset: datasets.Dataset) -> Markup | None:
    """The entropy of a dataset that was ranked, by level."""
    if not {"entropy", "level"} <= set(dataset.column_names):
        return None
    label = "Histogram of the entropy of the chosen answers, stacked by level"
    return plots.histogram(column(dataset, "entropy"), column(dataset, "level"), label)


def facts(run: Path, results: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Settings, seconds and versions, each by name: from results.json, or else from what a training run keeps."""
    config = run / "config.yaml"
    configured = yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else {}
    found = {
        "Settings": results.get("settings") or configured,
        "Seconds": read_json(run / "seconds.json"),
        "Versions": results.get("versions") or read_json(run / "made_by.json").get("versions"),
    }
    return {title: _flat(values) for title, values in found.items() if values}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `outer.inner` -> text.

    >>> _flat({"seed": 0, "dpo": {"beta": 0.1}})
    {'seed': '0', 'dpo.beta': '0.1'}
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file."""
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise MfpoError(f"{path}: not valid JSON ({error}); make it again") from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects in a JSONL file, one a line."""
    rows = []
    # Not splitlines(), which also cuts where a model wrote one of Unicode's other line ends.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line else []
        except ValueError as error:
            raise MfpoError(f"{path}, line {number}: not valid JSON ({error}); make it again") from None
    return rows
