"""The two pages: `inspect.html` beside a dataset, `report.html` in a run folder. Both work without a network."""

import base64
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from mfpo.errors import MfpoError
from mfpo.folders import write_text
from mfpo.records import column
from mfpo.report import scores, sections
from mfpo.report.palette import PALETTE
from mfpo.report.samples import Sample, open_samples, read_samples

REPORT_SAMPLES = 6


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the template shows; a section without content is left out."""

    kind: str
    title: str
    headline: str
    lead: dict[str, str] = field(default_factory=dict)
    tiles: list[sections.Tile] = field(default_factory=list)
    metrics: list[scores.Metric] = field(default_factory=list)
    rows: list[scores.Row] = field(default_factory=list)
    bars: Markup | None = None
    panels: list[sections.Panels] = field(default_factory=list)
    examples: list[sections.Example] = field(default_factory=list)
    histogram: Markup | None = None
    samples: list[Sample] = field(default_factory=list)
    total_samples: int = 0
    can_filter: bool = False
    reasons: dict[str, int] = field(default_factory=dict)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)


def inspect(data: Path, out: Path | None = None, limit: int = 500) -> Path:
    """Write a page on the dataset folder `data`, and return its path (`inspect.html` in that folder if not given).

    It shows `limit` records at even distances, with what `summary.json` says of the whole.
    Raises MfpoError when the folder holds no dataset that `mfpo build` or `mfpo rank` wrote.
    """
    dataset = open_samples(data)
    fallbacks = sum(corruption["fallback"] for corruption in column(dataset, "corruption"))
    summary = sections.read_json(data / "summary.json")
    samples = read_samples(dataset, limit)
    page = Page(
        kind="dataset",
        title=f"{data.resolve().name} · mfpo inspect",
        headline=data.resolve().name,
        tiles=sections.dataset_tiles(summary, len(dataset), fallbacks),
        reasons=summary.get("reasons", {}),
        samples=samples,
        total_samples=len(dataset),
        can_filter=True,
    )
    return write(page, out or data / "inspect.html")


def write_report(run: Path) -> Path:
    """Write `report.html` into the folder of a training run or of the demo, and return its path.

    What the folder does not hold is left out.
    Raises MfpoError when it holds neither metrics.jsonl nor results.json, or when one of them cannot be read.
    """
    # The demo calls this while its folder still has the name that whole_folder gave it.
    title = run.resolve().name.removesuffix(".partial")
    results = sections.read_json(run / "results.json")
    models = results.get("models", {})
    # The demo has a run folder for each method; a training run is one itself.
    runs = {title: run} | {name: run / name for name in models}
    logs = {name: sections.read_jsonl(log) for name in runs if (log := runs[name] / "metrics.jsonl").exists()}
    if not models and not logs:
        raise MfpoError(f"{run}: neither metrics.jsonl nor results.json there; give a folder of `mfpo train` or `demo`")
    trained = [name for name in models if name != "base"]
    dataset = open_samples(run / "ranked") if (run / "ranked").is_dir() else None
    page = Page(
        kind="report",
        title=f"{title} · mfpo report",
        headline=scores.headline(models, trained[-1]) if trained else title,
        lead={name: "; ".join(scores.changes(models, name)) for name in reversed(trained)},
        tiles=[] if models else sections.training_tiles(logs),
        metrics=scores.measured(models),
        rows=scores.table(models),
        bars=sections.bars(models),
        panels=sections.panels(logs),
        examples=sections.examples(run, list(models)),
        histogram=sections.histogram(dataset) if dataset else None,
        samples=read_samples(dataset, REPORT_SAMPLES) if dataset else [],
        total_samples=len(dataset) if dataset else 0,
        facts=sections.facts(run, results),
    )
    return write(page, run / "report.html")


def write(page: Page, path: Path) -> Path:
    """Render `page` with every text escaped. Its own script is allowed by hash, so that no other one can run."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"sha256": _sha256, "typeset": _typeset}
    html = environment.get_template("page.html.jinja").render(page=page, palette=PALETTE)
    write_text(path, html)
    return path


def _sha256(text: str) -> str:
    """The hash of a script as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _typeset(text: str) -> Markup:
    """`text` escaped, with the letters of CHAIR_s and CHAIR_i set low, and no line break before a percent sign.

    >>> _typeset("<b> CHAIR_s")
    Markup('&lt;b&gt; CHAIR<sub>s</sub>')
    """
    escaped = str(escape(text)).replace(" %", "\N{NO-BREAK SPACE}%")
    return Markup(re.sub(r"\bCHAIR_([si])\b", r"CHAIR<sub>\1</sub>", escaped))
