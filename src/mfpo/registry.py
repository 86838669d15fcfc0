"""Extensions by name: one registry per kind, filled by decorators, in the package and in users' files."""

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from mfpo.errors import MfpoError, SettingError, brief, first_line, nearest

T = TypeVar("T")

# The users' files that have been run, with their text, as no other process can import them.
PLUGINS: dict[Path, bytes] = {}


class Registry(Generic[T]):
    """Things of one `kind` by name.

    Those of the package are `names`; each stands in a module of `package` that is called like it and is imported when
    it is asked for, as some take seconds. Others come from `add`.
    """

    def __init__(self, kind: str, package: str, names: Sequence[str]) -> None:
        self.kind = kind
        self._package = package
        self._names = tuple(names)
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T) -> None:
        """Raises SettingError when the package has that name itself; one's own is replaced, as a notebook needs."""
        module = getattr(thing, "__module__", "")
        if name in self._names and not str(module).startswith(f"{self._package}."):
            raise SettingError(f"the package has a {self.kind} named {name!r}; give yours another name")
        self._things[name] = thing

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers its function or class."""

        def decorate(thing: T) -> T:
            self.add(name, thing)
            return thing

        return decorate

    def __iter__(self) -> Iterator[str]:
        return iter([*self._names, *(name for name in self._things if name not in self._names)])

    def __contains__(self, name: object) -> bool:
        return name in self._names or name in self._things

    def __getitem__(self, name: str) -> T:
        """Raises SettingError with the nearest name when there is none."""
        if name not in self:
            raise SettingError(f"no {self.kind} is named {brief(name)}; {nearest(name, self)}")
        if name not in self._things:
            import_module(f"{self._package}.{name.replace('-', '_')}")
        return self._things[name]


def load_plugin(file: Path) -> None:
    """Run a user's file, whose decorators register its contents. Raises MfpoError with the line when it fails."""
    if not file.is_file():
        raise MfpoError(f"{file}: no such file; give --plugin FILE.py")
    if file.suffix != ".py":
        raise MfpoError(f"{file}: its name does not end in .py; give --plugin FILE.py")
    run_plugin(file, file.read_bytes())


def run_plugin(file: Path, text: bytes) -> None:
    """Like `load_plugin`, with the text of a file that need not be on this machine."""
    module = ModuleType(f"mfpo_plugin_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where dataclasses look for it
    try:
        exec(compile(text, str(file), "exec"), vars(module))
    except MfpoError:
        raise
    except Exception as error:
        trace = error.__traceback__
        line = getattr(error, "lineno", None)
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == str(file):
                line = trace.tb_lineno
            trace = trace.tb_next
        raise MfpoError(f"{file}, line {line}: {type(error).__name__}: {first_line(error)}") from error
    PLUGINS[file] = text
