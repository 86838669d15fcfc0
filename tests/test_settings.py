from dataclasses import dataclass

import pytest

from mfpo.errors import MfpoError, SettingError
from mfpo.folders import whole_folder
from mfpo.settings import read_settings, setting


@dataclass(frozen=True, kw_only=True)
class Settings:
    rate: float = setting(0.1, "a number")
    steps: int = setting(3, "a whole number")
    pattern: str | None = setting(None, "a text")
    flag: bool = setting(False, "true or false")


def test_later_values_win(tmp_path):
    (tmp_path / "config.yaml").write_text("rate: 5e-7\nsteps: 4\n")
    assert read_settings(Settings, tmp_path / "config.yaml", ["steps=5"]) == Settings(rate=5e-7, steps=5)


@pytest.mark.parametrize("pattern", ["*q_proj", "[qv]_proj", "{a", "model.*proj"])
def test_a_regular_expression_is_a_text(pattern):
    assert read_settings(Settings, None, [f"pattern={pattern}"]).pattern == pattern


def test_all_faults_are_named_at_once():
    with pytest.raises(SettingError, match=r"'stepps', did you mean 'steps'\?; rate is 'low', but must be a number"):
        read_settings(Settings, None, ["stepps=1", "rate=low"])


@pytest.mark.parametrize("override", ["steps=1.5", "steps=true", "flag=1", "rate=true", "steps"])
def test_wrong_types(override):
    with pytest.raises(SettingError):
        read_settings(Settings, None, [override])


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"- 1", b"1: 2"])
def test_configs_that_are_none(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(SettingError):
        read_settings(Settings, tmp_path / "config.yaml", [])


def test_a_folder_appears_whole_and_goes_on_only_for_the_same_command(tmp_path, capsys):
    out = tmp_path / "out"

    def write(made_by, fail):
        with whole_folder(out, made_by) as folder:
            (folder / "part").touch()
            if fail:
                raise KeyboardInterrupt
            return sorted(path.name for path in folder.iterdir())

    with pytest.raises(KeyboardInterrupt):
        write({"seed": 0}, True)
    assert not out.exists()
    (tmp_path / "out.partial" / "earlier").touch()
    with pytest.raises(KeyboardInterrupt):
        write({"seed": 0}, True)
    assert (tmp_path / "out.partial" / "earlier").exists()
    assert capsys.readouterr().err == ""
    assert write({"seed": 1}, False) == ["made_by.json", "part"]
    assert "other seed; starting anew" in capsys.readouterr().err
    with pytest.raises(MfpoError, match="exists already"):
        write({"seed": 1}, False)


def test_a_folder_of_somebody_else_is_not_removed(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").touch()
    with pytest.raises(MfpoError, match="not made by mfpo"), whole_folder(tmp_path / "out", {}):
        pass
    assert (tmp_path / "out.partial" / "thesis.txt").exists()
