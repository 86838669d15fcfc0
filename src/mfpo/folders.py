"""Output folders: complete or absent, with the configuration and versions that made them."""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from mfpo.errors import MfpoError, SettingError, brief, first_line

# What a result may depend on.
_PACKAGES = ("mfpo", "torch", "transformers", "datasets", "peft", "accelerate", "numpy", "pillow")

# What a run writes into its folder before it computes anything.
_SETTINGS = {"made_by.json", "config.yaml"}


@contextmanager
def whole_folder(out: Path, made_by: dict[str, Any], *, anew: bool = True) -> Iterator[Path]:
    """Yield a folder next to `out` to write in, and rename it to `out` at the end.

    `made_by` holds the command and its settings. The folder of a killed run is yielded again, so that the
    caller can resume, if its settings and versions are the same; otherwise it is removed with a note on
    stderr, or, if it is too costly to make `anew` and holds more than its settings, it is an error. Also raises
    MfpoError when `out` exists already, or when a foreign folder is in the way.
    """
    check_new(out)
    folder = out.with_name(out.name + ".partial")
    provenance = json.loads(json.dumps(made_by | {"versions": versions()}, default=str))
    note = folder / "made_by.json"
    with _locked(folder):
        if any(folder.iterdir()) and not note.exists():
            raise MfpoError(f"{folder} is in the way and was not made by mfpo; remove it or give another --out")
        if note.exists():
            before = json.loads(note.read_text(encoding="utf-8"))
            changed = [key for key in provenance | before if before.get(key) != provenance.get(key)]
            is_begun = any(path.name not in _SETTINGS for path in folder.iterdir())
            if changed and is_begun and not anew:
                what = "; ".join(_difference(key, before.get(key), provenance.get(key)) for key in changed)
                raise MfpoError(
                    f"{folder} belongs to a run with other settings: {what}; repeat that command to resume it, remove "
                    "the folder to start over, or give another --out"
                )
            if changed:
                print(f"{folder}: belongs to a run with other {', '.join(changed)}; starting over", file=sys.stderr)
                _empty(folder)
        write_json(note, provenance)
        yield folder
        folder.rename(out)


@contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Raises MfpoError when `what` cannot be written in `folder`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of them, as to who writes
        free = shutil.disk_usage(folder).free >> 20
        raise MfpoError(
            f"{what} cannot be written ({first_line(error)}), {free} MiB are free in {folder}; make room and "
            "repeat the same command: it resumes from what is complete"
        ) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make `folder`, and keep other runs out of it. Raises MfpoError when one is in it, or it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise MfpoError(f"{folder}: cannot be made ({error.strerror}); give another --out") from None
    try:
        lock(handle, folder)
        yield
    finally:
        os.close(handle)


def lock(handle: int, path: Path) -> None:
    """Keep other runs from the open file or folder `path`. Raises MfpoError when one has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MfpoError(f"{path}: another run is writing it; wait for that one, or write elsewhere") from None


def _difference(name: str, before: Any, now: Any) -> str:
    """Where two values of a provenance differ, in the words of a user.

    >>> _difference("settings", {"seed": 0, "beta": 0.1}, {"seed": 1, "beta": 0.1})
    'seed was 0 and is 1'
    """
    if isinstance(before, dict) and isinstance(now, dict):
        return "; ".join(_difference(k, before.get(k), now.get(k)) for k in before | now if before.get(k) != now.get(k))
    return f"{name} was {brief(before)} and is {brief(now)}"


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a result may depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def check_shards(folder: Path) -> None:
    """Raises MfpoError when the folder holds no dataset of ours."""
    if not folder.is_dir():
        raise MfpoError(f"{folder}: no such folder; make it with `mfpo build ... --out {folder}`")
    if not any(folder.glob("*.parquet")):
        raise MfpoError(f"{folder}: no Parquet shards there; make them with `mfpo build ... --out {folder}`")


def check_run(folder: Path) -> None:
    """Raises MfpoError when the folder holds neither a training run nor a demo."""
    if not any((folder / name).is_file() for name in ("metrics.jsonl", "results.json")):
        raise MfpoError(
            f"{folder}: neither metrics.jsonl nor results.json there; give a folder of `mfpo train` or `demo`"
        )


def check_new(out: Path) -> None:
    """Raises MfpoError when the folder to write exists already."""
    if out.exists():
        raise MfpoError(f"{out} exists already; give another --out or remove it")


def check_readable(path: Path | None) -> Path | None:
    """`path`. Raises MfpoError when there is nothing, before anything is imported or computed for it."""
    if path is not None and not path.exists():
        raise MfpoError(f"{path}: cannot be read (No such file or directory); give an existing file")
    return path


def check_file(path: Path | None) -> Path | None:
    """`path`. Raises SettingError when no file can be written there, before anything is computed for it."""
    if path is not None:
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if path.is_dir() or not above.is_dir():
            raise SettingError(f"{path}: {'is a folder' if path.is_dir() else f'{above} is a file'}; name a new file")
        if not os.access(path if path.exists() else above, os.W_OK):
            raise SettingError(f"{path}: is not writable; name a file elsewhere")
    return path


@contextmanager
def whole_file(path: Path, *, is_shared: bool = False) -> Iterator[Path]:
    """Yield a path next to `path` to write to, creating its folder if needed, and rename it to `path` at the end.

    So the file is complete or absent. With `is_shared`, several processes may write it at once, each to its
    own path; otherwise the leftovers of a killed run are overwritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}{f'.{uuid4().hex}' if is_shared else ''}.partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)


def write_json(path: Path, value: Any, *, is_shared: bool = False) -> None:
    """Write `value` as JSON, as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", is_shared=is_shared)


def write_text(path: Path, text: str, *, is_shared: bool = False) -> None:
    """Write `text` as UTF-8, as a `whole_file`."""
    with whole_file(path, is_shared=is_shared) as partial:
        partial.write_text(text, encoding="utf-8")


def provenance_of(thing: Any) -> Any:
    """The identity of a source or segmenter for `made_by.json`: its `provenance`, or the name of its class or function.

    >>> provenance_of(check_new)
    'mfpo.folders.check_new'
    """
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return getattr(thing, "provenance", f"{named.__module__}.{named.__qualname__}")


def file_states(files: Iterable[Path]) -> dict[str, list[int]]:
    """Size in bytes and modification time in ns of each file, which identify it when a killed run resumes."""
    states = [(os.path.abspath(file), file.stat()) for file in sorted(files) if file.is_file()]
    return {name: [state.st_size, state.st_mtime_ns] for name, state in states}


def fingerprint(folder: Path, pattern: str) -> str:
    """A hash of the content of the files in `folder` that match `pattern`; changes when any of them does."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.glob(pattern) if path.is_file()):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
