from pathlib import Path

import pytest

from mfpo.errors import MfpoError, SettingError
from mfpo.registry import Registry, load_plugin

THINGS: Registry = Registry("method", "mfpo.train.methods", ["dpo", "ha-dpo"])


def test_ones_own_stands_beside_those_of_the_package():
    @THINGS.register("mine")
    def first():
        pass

    @THINGS.register("mine")
    def second():
        pass

    assert list(THINGS) == ["dpo", "ha-dpo", "mine"]
    assert THINGS["mine"] is second
    assert "mine" in THINGS
    assert "yours" not in THINGS


def test_a_name_of_the_packages_cannot_be_taken():
    with pytest.raises(SettingError, match="the package has a method named 'dpo'"):
        THINGS.add("dpo", lambda: None)


@pytest.mark.parametrize(("name", "hint"), [("had-po", "did you mean 'ha-dpo'"), ("zzz", "there are dpo, ha-dpo")])
def test_an_unknown_name_is_told_the_nearest(name, hint):
    with pytest.raises(SettingError, match=f"no method is named '{name}'; {hint}"):
        THINGS[name]


def test_a_plugin_is_run(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("print('read')")
    load_plugin(tmp_path / "mine.py")
    assert capsys.readouterr().out == "read\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a = 1\nb = 1 / 0", "line 2: ZeroDivisionError: division by zero"),
        ("import os\nif", "line 2: SyntaxError"),
        ("import nothing_called_so", "line 1: ModuleNotFoundError: No module named"),
    ],
)
def test_a_plugin_that_fails_is_told_with_its_line(tmp_path, text, fault):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(MfpoError, match=f"mine.py, {fault}"):
        load_plugin(tmp_path / "mine.py")


def test_the_line_is_told_of_a_relative_path_too(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("a = 1\n\nb = 1 / 0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MfpoError, match=r"^mine\.py, line 3: ZeroDivisionError"):
        load_plugin(Path("mine.py"))


@pytest.mark.parametrize("name", ["missing.py", "folder.py", "text.txt"])
def test_what_is_no_python_file(tmp_path, name):
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "text.txt").touch()
    with pytest.raises(MfpoError, match=r"no such file|does not end in"):
        load_plugin(tmp_path / name)
