"""Imports point one way: forward through the stages, and never up."""

import ast
from pathlib import Path

import pytest

import mfpo

PACKAGE = Path(mfpo.__file__).parent

# What each part may import of the package, besides the modules at its top.
MAY_IMPORT = {
    "sources": set(),
    "report": set(),
    "logprobs": set(),
    "build": {"sources"},
    "rank": {"logprobs"},
    "answer": {"build"},
    "pairs": {"answer", "build", "sources"},
    "train": {"logprobs", "rank"},
    "evaluate": {"answer"},
    "probe": {"answer", "build", "evaluate", "logprobs", "report", "train"},
    "picturebook": {"build", "pairs"},
    "study": {
        "answer", "build", "evaluate", "logprobs", "pairs", "picturebook", "probe", "rank", "report", "sources", "train"
    },
    "cli": {
        "demo",
        "answer", "build", "evaluate", "pairs", "picturebook", "probe", "rank", "report", "sources", "study", "train"
    },
}  # fmt: skip
# The modules at the top that know the parts, and which no part imports.
COMMANDS = {"demo", "__init__"}


def imported_parts(path):
    """The parts of mfpo that a file imports, wherever in the file."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes), path
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    names += [
        f"mfpo.{alias.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "mfpo"
        for alias in node.names
    ]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("mfpo.")}


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_imports_only_what_comes_before_it(part):
    files = sorted((PACKAGE / part).rglob("*.py"))
    assert files
    top = {path.stem for path in PACKAGE.glob("*.py")} - COMMANDS
    for path in files:
        assert imported_parts(path) <= MAY_IMPORT[part] | {part} | top, path


def test_the_modules_at_the_top_import_no_part():
    for path in PACKAGE.glob("*.py"):
        if path.stem not in COMMANDS:
            assert not imported_parts(path) & set(MAY_IMPORT), path


def test_every_part_is_listed():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(MAY_IMPORT)


def test_only_its_command_imports_the_study():
    files = sorted(PACKAGE.rglob("*.py"))
    assert {path.name for path in files if path.parent.name != "study" and "study" in imported_parts(path)} == {
        "reproduce.py"
    }
