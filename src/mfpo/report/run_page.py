"""`report.html` in a run folder: scores, curves, held-out images and records, each where its file is there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import yaml
from markupsafe import Markup

from mfpo.dataset import column
from mfpo.errors import MfpoError, brief
from mfpo.files import read_json, read_rows
from mfpo.folders import check_run
from mfpo.images import decode_image, load_image
from mfpo.report import plots, scores
from mfpo.report.page import Example, Page, Panels, Tile, tiles_of, write
from mfpo.report.palette import BLUE, GREEN, ORANGE, PURPLE, RED, SKY
from mfpo.report.plots import Line, Look
from mfpo.report.samples import evenly, open_samples, picture, read_samples, thumbnail
from mfpo.report.tables import table
from mfpo.report.texts import cut, object_spans

_SAMPLES, _EXAMPLES = 6, 8

# Keys of metrics.jsonl -> name, and how it is drawn.
_REWARDS: dict[str, tuple[str, Look]] = {
    "rewards/chosen": ("chosen", (GREEN, "-")),
    "rewards/rejected": ("rejected", (RED, "--")),
    "rewards/image_rejected": ("chosen, rejected image", (BLUE, "-.")),
}
_LOSSES: dict[str, tuple[str, Look]] = {
    "loss/text": ("text", (RED, "--")),
    "loss/image": ("image", (BLUE, "-.")),
    "loss/margin": ("margin", (GREEN, "-")),
    "loss/lm": ("language model", (PURPLE, ":")),
    "loss/kl": ("divergence", (ORANGE, "--")),
    "loss/contrast": ("contrast", (SKY, "-.")),
}

_DEPENDENCE: dict[str, tuple[str, Look]] = {"eval/image_dependence": ("image dependence", (BLUE, "-"))}

Logs = Mapping[str, Sequence[Mapping[str, Any]]]


def write_report(run: Path) -> Path:
    """Write `report.html` into the folder of a training run or of the demo, and return its path.

    Sections without a file are omitted.
    Raises MfpoError when it holds neither metrics.jsonl nor results.json, or when one of them cannot be read.
    """
    check_run(run)
    # The demo calls this while its folder still has the name that whole_folder gave it.
    title = run.resolve().name.removesuffix(".partial")
    results = _read_json(run / "results.json")
    models = results.get("models", {})
    # The demo has a run folder for each method; a training run is one itself.
    runs = {title: run} | {name: run / name for name in models}
    logs = {name: _rows(log) for name, folder in runs.items() if (log := folder / "metrics.jsonl").exists()}
    if not models and not logs:
        raise MfpoError(f"{run / 'results.json'}: it has no models; give a folder of `mfpo train` or `demo`")
    trained = [name for name in models if name != "base"]
    dataset = open_samples(run / "ranked") if (run / "ranked").is_dir() else None
    page = Page(
        title=f"{title} · mfpo report",
        headline=scores.headline(models, trained[-1]) if trained else title,
        lead={name: "; ".join(scores.changes(models, name)) for name in reversed(trained)},
        tiles=[] if models else _training_tiles(logs),
        table=table(scores.header(models), scores.rows(models)) if models else None,
        metrics=scores.measured(models),
        bars=_bars(models),
        panels=_panels(logs),
        examples=_examples(run, list(models)),
        histogram=_histogram(dataset) if dataset else None,
        samples=read_samples(dataset, _SAMPLES) if dataset else [],
        total_samples=len(dataset) if dataset else 0,
        facts=_facts(run, results),
    )
    return write(page, run / "report.html")


def _training_tiles(logs: Logs) -> list[Tile]:
    """Where a training run ended: the last line of its metrics."""
    rows = next(iter(logs.values()), [])
    last: dict[str, Any] = {}
    for row in rows:  # those of held-out pairs have lines of their own
        last |= row
    shown = {
        "step": ("steps", "", "{:,}"),
        "loss": ("loss", "last logged", "{:.3f}"),
        "rewards/accuracies": ("accuracy", "chosen above rejected", "{:.1%}"),
        "rewards/margins": ("margin", "chosen minus rejected", "{:.2f}"),
        "rewards/image_margins": ("image margin", "original minus rejected image", "{:.2f}"),
        "eval/rewards/accuracies": ("held-out accuracy", "chosen above rejected", "{:.1%}"),
        "eval/image_dependence": ("image dependence", "held-out pairs, nats", "{:.2f}"),
    }
    return tiles_of(shown, last)


def _bars(models: scores.Models) -> Markup | None:
    """The percentages of the table as bars."""
    columns = {
        metric.name: {name: figures[metric.key] for name, figures in models.items() if metric.key in figures}
        for metric in scores.measured(models)
        if metric.unit == "%"
    }
    if not columns:
        return None
    return plots.bars(columns, f"Bars of {', '.join(columns)} in percent for each model; the table has the figures")


def _panels(logs: Logs) -> list[Panels]:
    """Rewards and losses over the steps, a panel for each run that logged them."""
    kinds = (
        ("Rewards", _REWARDS, "β times the log-ratio to the reference. The chosen answer should stay above 0."),
        ("Loss by term", _LOSSES, "Text and image start at log 2 ≈ 0.693, where the policy is the reference."),
        ("Rewards of held-out pairs", _held_out(_REWARDS), "As above, on pairs that it was not trained on."),
        ("Loss of held-out pairs", _held_out(_LOSSES), "Where it rises while the training loss falls, it overfits."),
        ("Image dependence", _DEPENDENCE, "log p(y_w | m) - log p(y_w | m') of held-out pairs, in nats."),
    )
    panels = []
    for title, shown, note in kinds:
        lines = {name: logged for name, rows in logs.items() if (logged := _lines(rows, shown))}
        limits = plots.limits_of(line for of_run in lines.values() for line in of_run.values())
        drawn = {
            name: plots.plot(
                of_run,
                x_label="step",
                label=f"{title} of {name} by training step; stages marked",
                limits=limits,
                looks=dict(shown.values()),
                stages=logs[name],
                wide=len(lines) == 1,
            )
            for name, of_run in lines.items()
        }
        panels += [Panels(title, note, drawn)] if drawn else []
    return panels


def _held_out(shown: Mapping[str, tuple[str, Look]]) -> dict[str, tuple[str, Look]]:
    """The same figures of held-out pairs."""
    return {f"eval/{key}": drawn for key, drawn in shown.items()}


def _lines(rows: Sequence[Mapping[str, Any]], shown: Mapping[str, tuple[str, Look]]) -> dict[str, Line]:
    """Those of the keys `shown` that a run has logged, over its steps."""
    lines = {}
    for key, (name, _) in shown.items():
        logged = [row for row in rows if row.get(key) is not None]
        if logged:
            lines[name] = Line(x=[row["step"] for row in logged], y=[row[key] for row in logged])
    return lines


def _examples(run: Path, models: Sequence[str]) -> list[Example]:
    """Held-out images at even distances, with the captions of all models, objects marked as there or not there.

    Raises MfpoError when an image that is shown has no line in annotations.jsonl.
    """
    annotations = run / "heldout" / "annotations.jsonl"
    files = {name: run / "answers" / f"{name}_captions.jsonl" for name in models}
    answers = {name: {row["question_id"]: row for row in _rows(file)} for name, file in files.items() if file.exists()}
    if not answers or not annotations.exists():
        return []
    objects = {str(row["image_id"]): row["objects"] for row in _rows(annotations)}
    questions = [key for key in next(iter(answers.values())) if all(key in by_id for by_id in answers.values())]
    examples = []
    for key in (questions[index] for index in evenly(len(questions), _EXAMPLES)):
        rows = {name: by_id[key] for name, by_id in answers.items()}
        first = next(iter(rows.values()))
        image = first["image"]
        if image not in objects:
            raise MfpoError(f"{annotations}: no line has the image_id {brief(image)}, which the captions are about")
        small = thumbnail(decode_image(load_image(run / "heldout", image)))
        captions = {name: cut(row["text"], object_spans(row["text"], objects[image])) for name, row in rows.items()}
        examples.append(Example(picture(small), image, first["prompt"], captions))
    return examples


def _histogram(dataset: datasets.Dataset) -> Markup | None:
    """The entropy of a dataset that was ranked, by level."""
    if not {"entropy", "level"} <= set(dataset.column_names):
        return None
    label = "Histogram of the entropy of the chosen answers, stacked by level"
    return plots.histogram(column(dataset, "entropy"), column(dataset, "level"), label)


def _facts(run: Path, results: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """Settings, seconds and versions, each by name: from results.json, or else from what a training run keeps."""
    config = run / "config.yaml"
    configured = yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else {}
    facts = {
        "Settings": results.get("settings") or configured,
        "Seconds": _read_json(run / "seconds.json"),
        "Versions": results.get("versions") or _read_json(run / "made_by.json").get("versions"),
    }
    return {title: _flat(values) for title, values in facts.items() if values}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested settings as `outer.inner` -> value.

    >>> _flat({"seed": 0, "dpo": {"beta": 0.1}})
    {'seed': 0, 'dpo.beta': 0.1}
    """
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file."""
    return dict(read_json(path)) if path.exists() else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)]
