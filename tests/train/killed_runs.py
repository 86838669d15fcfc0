"""Runs `train` again and again in children that kill themselves at a file operation, until one comes to its end.

`python killed_runs.py DATA MODEL OUT SETTINGS EVERY`: the first child dies at operation EVERY on a path in OUT.partial
(a folder made, a file opened to be written, renamed, removed), the next one as many later, and so on. Prints how many
died. Children are forked before any tensor is computed.
"""

import json
import os
import signal
import sys
from pathlib import Path

from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings

WRITING = os.O_WRONLY | os.O_RDWR


def die_at(operation: int, folder: str) -> None:
    seen = 0

    def audit(event: str, arguments: tuple) -> None:
        nonlocal seen
        changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
        if event == "open":
            changes = isinstance(arguments[2], int) and bool(arguments[2] & WRITING)
        if changes and folder in str(arguments[0]):
            seen += 1
            if seen == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


def main() -> None:
    data, model, out = map(Path, sys.argv[1:4])
    settings = TrainSettings(**json.loads(sys.argv[4]))
    every, deaths = int(sys.argv[5]), 0
    while not out.exists():
        child = os.fork()
        if not child:
            # A child does some of what the one before has done, and must come further than it.
            die_at(every * (deaths + 1), str(out))
            train(data, model, out, settings)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
        deaths += status != 0
    print(deaths)


if __name__ == "__main__":
    main()
