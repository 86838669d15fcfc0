"""`import mfpo`: the names that a notebook needs, loaded when they are asked for."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mfpo


def test_type_checkers_are_told_the_same_names():
    tree = ast.parse(Path(mfpo.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in block.body for alias in node.names}
    assert told.keys() == set(mfpo.__all__)
    for name, module in told.items():
        value = getattr(mfpo, name)
        module_file = getattr(import_module(module), name)
        assert value is module_file or inspect.signature(value) == inspect.signature(module_file)
    assert (Path(mfpo.__file__).parent / "py.typed").exists()


def test_the_import_loads_nothing_heavy():
    code = "import mfpo, sys; dir(mfpo); print({'torch', 'datasets', 'numpy', 'typer'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_wrong_name():
    with pytest.raises(AttributeError, match="'mfpo' has no attribute 'nothing'"):
        _ = mfpo.nothing


def test_a_package_is_called_like_its_command():
    from mfpo.rank import settings  # the attribute `mfpo.rank` is a module from now on

    with pytest.raises(mfpo.MfpoError, match="no-data"):
        mfpo.rank("no-data", "no-model", "no-out", settings.RankSettings())
