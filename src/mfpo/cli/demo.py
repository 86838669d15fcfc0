"""The command `mfpo demo`."""

import os
from pathlib import Path

from mfpo.cli.console import Config, Out, Overrides, console
from mfpo.demo_settings import DemoSettings
from mfpo.settings import read_settings


def demo(out: Out = Path("runs/demo"), config: Config = None, overrides: Overrides = None) -> None:
    """Run the full pipeline on the picture book, in minutes on a CPU: build, rank, train DPO and MFPO, score, report.

    Example: mfpo demo --out runs/demo seed=0
    """
    settings = read_settings(DemoSettings, config, overrides or [])
    import torch  # seconds of imports: a mistake is told before them

    from mfpo.demo import demo as run

    # Threads wait for each other at every layer. On a busy machine one of them is always kept from running, and the
    # others burn their time on waiting; so there are as many as cores are free.
    free = round((os.cpu_count() or 1) - os.getloadavg()[0])
    torch.set_num_threads(max(1, min(free, torch.get_num_threads())))
    run(out, settings, console=console)
