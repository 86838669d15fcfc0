"""`inspect.html` beside a dataset: its figures and its records."""

from pathlib import Path

from mfpo.files import read_json
from mfpo.records import column
from mfpo.report.page import Page, tiles_of, write
from mfpo.report.samples import open_samples, read_samples


def inspect(data: Path, out: Path | None = None, limit: int = 500) -> Path:
    """Write a page on the dataset folder `data`, and return its path (`inspect.html` in that folder if not given).

    It shows `limit` records at even distances, with what `summary.json` says of the whole.
    Raises MfpoError when the folder holds no dataset that `mfpo build` or `mfpo rank` wrote.
    """
    dataset = open_samples(data)
    fallbacks = sum(corruption["fallback"] for corruption in column(dataset, "corruption"))
    file = data / "summary.json"
    summary = read_json(file) if file.exists() else {}
    counted = {"written": len(dataset), "fallback": fallbacks / max(len(dataset), 1)}
    shown = {
        "read": ("read", "", "{:,}"),
        "written": ("written", "", "{:,}"),
        "set_aside": ("set aside", "", "{:,}"),
        "fallback": ("fallback", "no keyword found a region", "{:.1%}"),
        "area_destroyed": ("area destroyed", "mean share of the image", "{:.1%}"),
        "keywords_per_record": ("keywords", "mean of a record", "{:.1f}"),
    }
    page = Page(
        kind="dataset",
        title=f"{data.resolve().name} · mfpo inspect",
        headline=data.resolve().name,
        tiles=tiles_of(shown, summary | counted),
        reasons=summary.get("reasons", {}),
        samples=read_samples(dataset, limit),
        total_samples=len(dataset),
        can_filter=True,
    )
    return write(page, out or data / "inspect.html")
