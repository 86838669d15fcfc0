"""The command `mfpo demo`."""

import os
from pathlib import Path

from mfpo.cli.console import Config, Out, Overrides, console
from mfpo.demo_settings import DemoSettings
from mfpo.folders import check_new
from mfpo.settings import read_settings


def demo(out: Out = Path("runs/demo"), config: Config = None, overrides: Overrides = None) -> None:
    """Run the full pipeline on the picture book, in minutes on a CPU: build, rank, train DPO and MFPO, score, report.

    Example: mfpo demo --out runs/demo seed=0
    """
    settings = read_settings(DemoSettings, config, overrides or [])
    check_new(out)
    # Before torch is loaded. Its threads wait for each other at every layer, by default busily, so that on a machine
    # with other work the demo's small model took three to five times as long, and as much CPU, as when they sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from mfpo.demo import demo as run  # seconds of imports: a mistake is told before them

    run(out, settings, console=console)
