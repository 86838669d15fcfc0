"""`inspect.html` beside a dataset: its figures and its records."""

from pathlib import Path
from typing import Any

from mfpo.dataset import column
from mfpo.files import read_json
from mfpo.report.page import Page, tiles_of, write
from mfpo.report.samples import open_samples, read_samples


def inspect(data: Path, out: Path | None = None, limit: int = 500) -> Path:
    """Write a page on the dataset folder `data`, and return its path (`inspect.html` in that folder if not given).

    It shows `limit` records at even distances, with what `summary.json` says of the whole.
    Raises MfpoError when the folder holds no dataset that `mfpo pairs`, `mfpo build` or `mfpo rank` wrote.
    """
    dataset = open_samples(data, is_built=False)
    is_built = "corruption" in dataset.column_names
    file = data / "summary.json"
    summary = read_json(file) if file.exists() else {}
    left_out = summary.get("left_out")  # of `build` a list of files
    counted: dict[str, Any] = {"written": len(dataset)}
    if is_built:
        counted["fallback"] = sum(row["fallback"] for row in column(dataset, "corruption")) / max(len(dataset), 1)
    counted |= {f"true_{side}": share for side, share in summary.get("true_share", {}).items()}
    shown = {
        "asked": ("asked", "", "{:,}"),
        "read": ("read", "", "{:,}"),
        "written": ("written", "", "{:,}"),
        "set_aside": ("set aside", "", "{:,}"),
        "true_chosen": ("true in chosen", "share of the claims", "{:.1%}"),
        "true_rejected": ("true in rejected", "share of the claims", "{:.1%}"),
        "length_ratio": ("length", "words of chosen over rejected", "{:.2f}"),
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
        left_out=left_out if isinstance(left_out, dict) else {},
        samples=read_samples(dataset, limit),
        total_samples=len(dataset),
        can_filter=is_built,
    )
    return write(page, out or data / "inspect.html")
