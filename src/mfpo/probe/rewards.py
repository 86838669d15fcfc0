"""How a run divides its preference between the modalities: text and image margins over training, and their balance."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mfpo.errors import MfpoError, SettingError
from mfpo.files import read_rows
from mfpo.folders import versions, whole_folder, write_json
from mfpo.probe.settings import RewardsSettings
from mfpo.report.page import Page, Panels, write
from mfpo.report.plots import Line, limits_of, looks_of, plot
from mfpo.report.tables import table

MARGINS = {"text": "rewards/margins", "image": "rewards/image_margins"}
# Below it a text margin is rounding, and a ratio to it means nothing.
_ROUNDING = 1e-5

Metrics = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Rewards:
    """Smoothed margins of a run, line by line of its metrics; a run without rejected images has no image margin."""

    steps: list[int]
    text: list[float]
    image: list[float] | None

    @property
    def balance(self) -> list[float | None] | None:
        """Image margin over text margin, 1 where both modalities pull alike; None where the text margin is about 0.

        Of the smoothed margins, as the ratio of single lines runs away wherever a text margin is small.
        """
        if self.image is None:
            return None
        return [i / t if abs(t) > _ROUNDING else None for t, i in zip(self.text, self.image, strict=True)]


@dataclass(frozen=True)
class Final:
    """Where a run ended: the means of its last lines."""

    step: int
    text_margin: float
    image_margin: float | None
    balance: float | None


def probe_rewards(runs: Sequence[Path], out: Path, settings: RewardsSettings) -> dict[str, Final]:
    """Write results.json and report.html on training runs into the folder `out`; return where each run ended.

    Raises MfpoError when a run has no metrics, or metrics without rewards, or is given twice.
    """
    names = [str(run) for run in runs]
    if len(set(names)) < len(names):
        raise SettingError("a run is given twice; name each once")
    logs = {name: read_metrics(run) for name, run in zip(names, runs, strict=True)}
    smoothed = {name: rewards(metrics, settings.window) for name, metrics in logs.items()}
    finals = {name: final(run) for name, run in smoothed.items()}
    with whole_folder(out, {"command": "probe rewards", "runs": names, "settings": asdict(settings)}) as folder:
        results = {"settings": asdict(settings), "runs": {name: asdict(end) for name, end in finals.items()}}
        write_json(folder / "results.json", results | {"versions": versions()})
        panels, facts = _panels(logs, smoothed, finals), {"Settings": asdict(settings)}
        write(Page(headline="Rewards over training", panels=panels, facts=facts), folder / "report.html")
    return finals


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl. Raises MfpoError when there is no such file or a line has no margin."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise MfpoError(f"{file} does not exist; give the folder of a run of `mfpo train`")
    rows = []
    for where, row in read_rows(file):
        if any(name.startswith("eval/") for name in row):  # of held-out pairs
            continue
        rows.append(row)
        for key in ("step", *MARGINS.values()):
            is_wanted = key != MARGINS["image"] or key in rows[0]
            if is_wanted and not (isinstance(row.get(key), int | float) and math.isfinite(row[key])):
                raise MfpoError(
                    f"{where}: {key!r} is missing or not a number; give a run whose method compares two answers"
                )
    if not rows:
        raise MfpoError(f"{file}: has no line of training yet; wait until the run has logged one")
    return rows


def rewards(metrics: Metrics, window: int) -> Rewards:
    """The margins of a run, each the mean over the last `window` lines."""
    by_name = {
        name: smooth([row[key] for row in metrics], window) for name, key in MARGINS.items() if key in metrics[0]
    }
    return Rewards([row["step"] for row in metrics], by_name["text"], by_name.get("image"))


def smooth(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and those before it, `window` in all; of fewer at the start.

    >>> smooth([1.0, 3.0, 5.0, 7.0], 2)
    [1.0, 2.0, 4.0, 6.0]
    """
    return [float(np.mean(values[max(0, end - window) : end])) for end in range(1, len(values) + 1)]


def final(run: Rewards) -> Final:
    """The last smoothed values of a run."""
    balance = run.balance
    return Final(run.steps[-1], run.text[-1], run.image[-1] if run.image else None, balance[-1] if balance else None)


def _panels(logs: Mapping[str, Metrics], runs: Mapping[str, Rewards], finals: Mapping[str, Final]) -> list[Panels]:
    lines: dict[str, dict[str, Line]] = {"text": {}, "image": {}}
    balances: dict[str, Line] = {}
    for name, run in runs.items():
        for modality, values in (("text", run.text), ("image", run.image)):
            if values is not None:
                raw = [row[MARGINS[modality]] for row in logs[name]]
                lines[modality][name] = Line(x=run.steps, y=values, raw=raw)
        if run.balance is not None:
            known = [(step, value) for step, value in zip(run.steps, run.balance, strict=True) if value is not None]
            balances[name] = Line(x=[step for step, _ in known], y=[value for _, value in known])
    limits = limits_of(line for part in lines.values() for line in part.values())
    margins = {
        f"{modality} margin": plot(
            part,
            x_label="step",
            y_label="reward",
            label=f"The {modality} margin of {', '.join(part)} by training step",
            limits=limits,
            reference=0.0,
            looks=looks_of(runs),
        )
        for modality, part in lines.items()
        if part
    }
    note = "Mean over the last lines of metrics.jsonl; faint, the lines themselves. Text: r(y_w, m) - r(y_l, m). "
    panels = [Panels("Margins", note + "Image: r(y_w, m) - r(y_w, m').", margins)]
    if balances:
        drawn = plot(
            balances,
            x_label="step",
            y_label="image / text",
            label=f"Image margin over text margin of {', '.join(balances)} by training step",
            reference=1.0,
            wide=True,
            looks=looks_of(runs),
        )
        panels.append(
            Panels("Balance", "Image margin over text margin: 1 where both modalities pull alike.", {"balance": drawn})
        )
    ends = table(HEADER, [row_of(name, end) for name, end in finals.items()])
    return [*panels, Panels("At the end", "Means of the last lines.", {"final values": ends})]


HEADER = ("run", "step", "text margin", "image margin", "balance")


def row_of(name: str, end: Final) -> tuple[str, ...]:
    """The final values as they are printed; a value that there is not is a dash."""
    values = (end.text_margin, end.image_margin, end.balance)
    # A zero is added as -0.0 + 0 is 0.0.
    shown = ("–" if value is None else f"{round(value, 2) + 0:.2f}" for value in values)
    return (name, str(end.step), *shown)
