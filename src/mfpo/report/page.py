"""The one HTML page that all commands fill: self-contained, every text escaped, readable without a network."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mfpo.folders import write_text
from mfpo.report.palette import PALETTE
from mfpo.report.samples import Picture, Sample
from mfpo.report.scores import Metric
from mfpo.report.tables import typeset
from mfpo.report.texts import Piece


@dataclass(frozen=True)
class Tile:
    """One figure to read at a glance."""

    value: str
    name: str
    note: str = ""


def tiles_of(shown: Mapping[str, tuple[str, str, str]], values: Mapping[str, Any]) -> list[Tile]:
    """The `values` that are to be `shown` (key -> name, note, format), in that order."""
    return [
        Tile(form.format(values[key]).replace("%", " %"), name, note)
        for key, (name, note, form) in shown.items()
        if key in values
    ]


@dataclass(frozen=True)
class Panels:
    """Plots or tables of one kind, side by side, by the name above each."""

    title: str
    note: str
    plots: Mapping[str, Markup]


@dataclass(frozen=True)
class Example:
    """A held-out image and what each model says about it."""

    image: Picture
    name: str
    prompt: str
    captions: Mapping[str, list[Piece]]


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the template shows; a section without content is left out.

    `lead` holds a sentence for each name, `facts` the values at the foot by title and name.
    """

    kind: str = "report"
    headline: str
    title: str = ""
    lead: Mapping[str, str] = field(default_factory=dict)
    tiles: Sequence[Tile] = ()
    table: Markup | None = None
    metrics: Sequence[Metric] = ()
    bars: Markup | None = None
    panels: Sequence[Panels] = ()
    examples: Sequence[Example] = ()
    histogram: Markup | None = None
    samples: Sequence[Sample] = ()
    total_samples: int = 0
    can_filter: bool = False
    reasons: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def write(page: Page, path: Path) -> Path:
    """Render `page` with every text escaped. Its own script is allowed by hash, so that no other one can run."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"sha256": _sha256, "typeset": typeset}
    html = environment.get_template("page.html.jinja").render(page=page, palette=PALETTE)
    write_text(path, html)
    return path


def _sha256(text: str) -> str:
    """The hash of a script as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
