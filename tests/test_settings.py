import ast
import pickle
import re
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Annotated, ClassVar

import pytest

import mfpo
from mfpo.errors import MfpoError, SettingError
from mfpo.folders import whole_folder
from mfpo.registry import Registry
from mfpo.settings import ChosenSettings, Settings, about, options_of, read_settings, setting, with_options


@dataclass(frozen=True, kw_only=True)
class Example(Settings):
    rate: float = setting(0.1, "a number", above=0)
    steps: int = setting(3, "a whole number", least=1)
    share: float | None = setting(None, "a share", least=0, below=1)
    pattern: str | None = setting(None, "a text")
    file: Path | None = setting(None, "a file")
    flag: bool = setting(False, "true or false")


def test_later_values_win(tmp_path):
    (tmp_path / "config.yaml").write_text("rate: 5e-7\nsteps: 4\n")
    assert read_settings(Example, tmp_path / "config.yaml", ["steps=5"]) == Example(rate=5e-7, steps=5)


@pytest.mark.parametrize("pattern", ["*q_proj", "[qv]_proj", "{a", "model.*proj"])
def test_a_regular_expression_is_a_text(pattern):
    assert read_settings(Example, None, [f"pattern={pattern}"]).pattern == pattern


def test_all_faults_are_named_at_once():
    with pytest.raises(SettingError, match=r"'stepps', did you mean 'steps'\?; rate is 'low', but must be a number"):
        read_settings(Example, None, ["stepps=1", "rate=low"])


@pytest.mark.parametrize("override", ["steps=1.5", "steps=true", "flag=1", "rate=true", "steps"])
def test_wrong_types(override):
    with pytest.raises(SettingError):
        read_settings(Example, None, [override])


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"- 1", b"1: 2"])
def test_configs_that_are_none(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(SettingError):
        read_settings(Example, tmp_path / "config.yaml", [])


def test_a_path_is_one():
    assert read_settings(Example, None, ["file=a/b"]).file == Path("a/b")


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"rate": 0.0}, "rate is 0.0, but must be above 0"),
        ({"rate": float("inf")}, "rate is inf, but must be above 0"),
        ({"rate": float("nan"), "steps": 0}, "rate is nan, but must be above 0; steps is 0, but must be 1 or more"),
        ({"share": 1}, "share is 1, but must be from 0 to below 1"),
    ],
)
def test_numbers_out_of_bounds(values, fault):
    with pytest.raises(SettingError) as caught:
        Example(**values)
    assert str(caught.value) == fault


def test_settings_of_a_function_are_its_annotated_keyword_arguments():
    def function(ratios: "Tensor", *, weight: Annotated[float, about("of it", least=0)] = 0.5, hidden: int = 1):  # noqa: F821
        pass

    extended = with_options(Example, function)
    made = read_settings(extended, None, ["weight=2", "steps=4"])
    assert isinstance(made, Example)
    assert (made.steps, options_of(made, function)) == (4, {"weight": 2.0})
    assert asdict(made)["weight"] == 2.0
    with pytest.raises(SettingError, match=r"weight is -1\.0, but must be 0 or more"):
        read_settings(extended, None, ["weight=-1"])
    with pytest.raises(SettingError, match="no setting is named 'hidden'"):
        read_settings(extended, None, ["hidden=2"])


def test_only_keyword_arguments_are_settings_and_two_functions_may_share_one():
    def first(answers, words: Annotated[int, about("not a setting")] = 3, *, shared: Annotated[int, about("both")] = 1):
        pass

    def second(*, shared: Annotated[int, about("both")] = 1):
        pass

    extended = with_options(Example, first, second)
    made = read_settings(extended, None, ["shared=4"])
    assert options_of(made, first) == options_of(made, second) == {"shared": 4}
    with pytest.raises(SettingError, match="no setting is named 'words'"):
        read_settings(extended, None, ["words=20"])


@dataclass(frozen=True, kw_only=True)
class Chosen(ChosenSettings):
    choice = "method"
    known: ClassVar = Registry("method", "mfpo.train.methods", [])
    method: str = setting("top", "the method")

    @classmethod
    def brought(cls, name):
        return (cls.known[name],), ()


@Chosen.known.register("top")
def top(*, count: Annotated[int | None, about("null is all")] = 5, rate: Annotated[float, about("a number")] = 0.1):
    pass


def test_null_is_a_value_where_a_setting_may_be_null_and_the_default_elsewhere():
    made = read_settings(Chosen, None, ["count=null", "rate=null"])
    assert (made.count, made.rate) == (None, 0.1)
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize("text", ["2001-13-45", "0000-00-00"])
def test_a_date_that_there_is_not_is_a_text(tmp_path, text):
    assert read_settings(Example, None, [f"pattern={text}"]).pattern == text
    (tmp_path / "config.yaml").write_text(f"pattern: {text}\n")
    with pytest.raises(SettingError, match=r"config\.yaml"):
        read_settings(Example, tmp_path / "config.yaml", [])


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
    assert "other seed; starting over" in capsys.readouterr().err
    with pytest.raises(MfpoError, match="exists already"):
        write({"seed": 1}, False)


def test_a_folder_of_somebody_else_is_not_removed(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").touch()
    with pytest.raises(MfpoError, match="not made by mfpo"), whole_folder(tmp_path / "out", {}):
        pass
    assert (tmp_path / "out.partial" / "thesis.txt").exists()


# `set curriculum=false`, `give a smaller batch_size`, `lower learning_rate`.
HINT = re.compile(r"\bset ([a-z_]+)=|\b(?:smaller|lower) ([a-z]+_[a-z_]+)")


def test_errors_name_settings_that_their_command_has():
    """What `set NAME=VALUE` and `a smaller NAME` say; logprobs serves rank and train, whose names may differ."""
    from mfpo.answer.settings import AnswerSettings
    from mfpo.pairs.settings import PairsSettings
    from mfpo.rank.settings import RankSettings
    from mfpo.train.settings import TrainSettings

    known = {
        command: {field.name for field in [*fields(cls), *chain(*getattr(cls, "added", dict)().values())]}
        for command, cls in (
            ("answer", AnswerSettings),
            ("pairs", PairsSettings),
            ("rank", RankSettings),
            ("train", TrainSettings),
        )
    }
    known["logprobs"] = known["rank"] & known["train"]
    source, hints = Path(mfpo.__file__).parent, set()
    for command, names in known.items():
        told = set()
        for file in (source / command).rglob("*.py"):
            texts = [node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
            told |= {name for text in texts if isinstance(text, str) for found in HINT.findall(text) for name in found}
        assert told - {""} <= names, command
        hints |= told
    assert hints - {""}
