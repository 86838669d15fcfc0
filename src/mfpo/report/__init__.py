"""One self-contained HTML page to look at a built dataset, a training run, or the demo."""

from mfpo.report.dataset_page import inspect
from mfpo.report.run_page import write_report
from mfpo.report.samples import draw_regions

__all__ = ["draw_regions", "inspect", "write_report"]
