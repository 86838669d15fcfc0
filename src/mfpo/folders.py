"""Folders that commands write: whole or not at all, with the configuration and versions that made them."""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mfpo.errors import MfpoError

# What a result may depend on.
_PACKAGES = ("mfpo", "torch", "transformers", "datasets", "peft", "accelerate", "numpy", "pillow")


@contextmanager
def whole_folder(out: Path, made_by: dict[str, Any]) -> Iterator[Path]:
    """Give a folder beside `out` to write in, and rename it to `out` at the end.

    `made_by` holds the command and its settings. What a killed run left behind is given again, so that the caller can
    go on, if it was made by the same settings and versions; otherwise it is removed, which stderr is told.
    Raises MfpoError when `out` exists already, or somebody else's folder is where this one has to be.
    """
    if out.exists():
        raise MfpoError(f"{out} exists already; give another --out or remove it")
    folder = out.with_name(out.name + ".partial")
    provenance = json.loads(json.dumps(made_by | {"versions": versions()}, default=str))
    note = folder / "made_by.json"
    with _locked(folder):
        if any(folder.iterdir()) and not note.exists():
            raise MfpoError(f"{folder} is in the way and was not made by mfpo; remove it or give another --out")
        if note.exists():
            before = json.loads(note.read_text(encoding="utf-8"))
            changed = [key for key in provenance | before if before.get(key) != provenance.get(key)]
            if changed:
                print(f"{folder}: of a run with other {', '.join(changed)}; starting anew", file=sys.stderr)
                _empty(folder)
        write_json(note, provenance)
        yield folder
        folder.rename(out)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make `folder`, and keep other runs out of it. Raises MfpoError when one is in it, or it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise MfpoError(f"{folder}: cannot be made ({error.strerror}); give another --out") from None
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MfpoError(f"{folder}: another run is writing it; wait for that one or give another --out") from None


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a result may depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON; the file appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def fingerprint(folder: Path, pattern: str) -> str:
    """A hash of the content of the files in `folder` that match `pattern`; changes when any of them does."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.glob(pattern) if path.is_file()):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
