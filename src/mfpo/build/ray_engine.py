"""The engine of a cluster: the same steps as operators of Ray Data, the segmenter as a pool of actors."""

import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mfpo.build.engine import SEARCHED_TOGETHER, Shard, Work, chunks, draft, finish, search, write
from mfpo.build.notes import Note
from mfpo.build.regions import Search, Segmenter, open_segmenter
from mfpo.build.settings import BuildSettings, RegionSettings
from mfpo.errors import MfpoError, RecordError, SettingError, first_line
from mfpo.folders import provenance_of
from mfpo.records import Region
from mfpo.registry import PLUGINS, run_plugin
from mfpo.sources import Source

# Shards in flight: enough to keep a cluster busy, few enough for its object store.
_WINDOW = 32


class RayData:
    """An engine for `build` on a Ray cluster whose machines share the output folder and the source's images.

    `workers` actors search for regions, each with a GPU if the cluster has any; Ray spreads the rest over its cores.
    Connects to the cluster that RAY_ADDRESS names, or starts Ray on this machine. Raises MfpoError without Ray.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise SettingError(f"workers is {workers}, but must be 1 or more")
        try:
            import ray
        except ImportError:
            raise MfpoError("engine ray needs Ray; pip install 'mfpo[ray]'") from None
        if not ray.is_initialized():
            try:
                # Not init's own choice, which may be a cluster that once ran on this machine.
                address = os.environ.get("RAY_ADDRESS", "local")
                ray.init(address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise MfpoError(
                    f"Ray cannot be reached ({first_line(error)}); unset RAY_ADDRESS to start it here"
                ) from None
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # its notes on every window, and on rows it has to pickle
        ray.data.DataContext.get_current().enable_progress_bars = False
        self.workers = workers

    def __call__(
        self, shards: Iterator[Shard], source: Source, settings: BuildSettings, segmenter: Segmenter | None
    ) -> Iterator[tuple[Path, Note]]:
        import ray

        job = Job(Plugins(), source, settings, segmenter)
        has_model = isinstance(segmenter, OpenedByActor)
        gpus = 1 if has_model and ray.cluster_resources().get("GPU", 0) else 0
        for window in chunks(shards, _WINDOW):
            data = ray.data.from_items([{"shard": shard} for shard in window], override_num_blocks=len(window))
            data = data.map(_draft, fn_args=(job,))
            actors = ray.data.ActorPoolStrategy(size=self.workers)
            data = data.map(_Search, fn_constructor_args=(job,), compute=actors, num_gpus=gpus)
            data = data.map(_write, fn_args=(job,))
            for row in data.iter_rows():
                if row["error"]:
                    raise MfpoError(row["error"])
                yield row["path"], row["note"]


class OpenedByActor:
    """The segmenter that `--regions CHOICE` names, opened by each actor for itself, on its own GPU."""

    def __init__(self, choice: str, settings: RegionSettings) -> None:
        self._open = partial(open_segmenter, choice, settings)
        self._segmenter: Segmenter | None = None
        # Opened here too, so that a mistake is found before the first row.
        self.provenance = provenance_of(self._open())

    def __call__(self, searches: Sequence[Search]) -> list[list[Region] | RecordError]:
        self._segmenter = self._segmenter or self._open()
        return self._segmenter(searches)


class Plugins:
    """The user's files: a process that unpickles this has run them."""

    def __reduce__(self) -> tuple[Any, ...]:
        return run_plugins, (dict(PLUGINS),)


def run_plugins(texts: dict[Path, bytes]) -> Plugins:
    """Run the files that this process does not know yet, or not as they are now."""
    for file, text in texts.items():
        if PLUGINS.get(file) != text:
            run_plugin(file, text)
    return Plugins()


class Job(NamedTuple):
    """What all workers are given. The plugins come first, as the others cannot be unpickled without them."""

    plugins: Plugins
    source: Source
    settings: BuildSettings
    segmenter: Segmenter | None


def _draft(row: dict[str, Any], job: Job) -> dict[str, Any]:
    works = [draft(work, job.source, job.settings) for work in row["shard"].rows]
    return {"path": row["shard"].path, "works": works}


class _Search:
    def __init__(self, job: Job) -> None:
        self._segmenter = job.segmenter

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        works: list[Work] = []
        try:
            for some in chunks(row["works"], SEARCHED_TOGETHER):
                works += search(some, self._segmenter)
        except MfpoError as error:  # as a value, since Ray gives back only the traceback of what is raised
            return row | {"error": str(error)}
        return row | {"works": works, "error": None}


def _write(row: dict[str, Any], job: Job) -> dict[str, Any]:
    if row["error"]:
        return row
    note = write(row["path"], (finish(work, job.settings) for work in row["works"]))
    return {"path": row["path"], "note": note, "error": None}
