"""Makes `mfpo.train(...)` work next to `mfpo.train.policy`: a package that is callable like its command."""

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class CommandPackage(ModuleType):
    """A callable package: a call imports and calls its function."""

    _function: tuple[str, str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._load()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._load())

    def _load(self) -> Callable[..., Any]:
        module, name = self._function
        function: Callable[..., Any] = getattr(import_module(module), name)
        return function


def make_callable(package: str, module: str, name: str) -> None:
    """Let `package`, which is being imported, be called like the function `name` of `module`."""
    loaded = sys.modules[package]
    loaded.__class__ = CommandPackage
    loaded._function = (module, name)  # type: ignore[attr-defined]
