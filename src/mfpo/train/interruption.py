"""Ctrl-C while a model is trained: the step is finished and a checkpoint saved, from which the same command goes on."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from mfpo.train.processes import processes, say


class Interruption(TrainerCallback):
    """Ends a training after the step in which `is_asked` becomes true, with a checkpoint."""

    def __init__(self) -> None:
        self.is_asked, self.process = False, os.getpid()

    @contextmanager
    def by_signals(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM as asking; a second one ends at once. Raises KeyboardInterrupt at the end if asked.

        Several processes cannot tell at which step all of them have been asked, so for them a signal stays what it was;
        and only the main thread may say what it means.
        """
        signals = (signal.SIGINT, signal.SIGTERM)
        if processes().num_processes > 1 or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = [signal.signal(number, self._ask) for number in signals]
        try:
            yield
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)
        if self.is_asked:
            raise KeyboardInterrupt

    def _ask(self, number: int, frame: Any) -> None:
        if os.getpid() != self.process:  # a worker of the data loader, which got this handler with its parent's memory
            return
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
        say("stopping after this step, with a checkpoint; press Ctrl-C again to end at once")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop, if asked."""
        if self.is_asked:
            control.should_save = control.should_training_stop = True
