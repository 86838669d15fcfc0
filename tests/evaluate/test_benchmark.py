"""One registration: what `score`, `compare` and the commands make of a decorated function."""

import json
from typing import Annotated

import pytest

from mfpo.answer.judge_settings import JudgeSettings
from mfpo.errors import SettingError
from mfpo.evaluate.answers import Answer, read_answers
from mfpo.evaluate.benchmark import Result, benchmark, score
from mfpo.evaluate.compare import compare
from mfpo.evaluate.figures import Tally
from mfpo.settings import about


@benchmark("words")
def words(answers, annotations=None, *, least: Annotated[int, about("shortest answer", least=1)] = 3) -> Result:
    """Answers of at least so many words."""
    counts = {answer.question_id: (len(answer.text.split()) >= least, 1) for answer in read_answers(answers)}
    return Result({"all.long": Tally(counts)}, {"least": least}, [{"id": name} for name in counts])


@pytest.fixture
def files(tmp_path):
    for name, text in {"a": "One two three.", "b": "One two."}.items():
        rows = [{"question_id": number, "text": text} for number in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "a.jsonl", tmp_path / "b.jsonl"


def test_a_benchmark_of_ones_own(files):
    result = score("words", files[1], least=2)
    assert result["all.long"] == 100
    assert result.json() == {
        "all": {"long": {"value": 100, "low": 100, "high": 100, "n": 4}},
        "least": 2,
        "details": [{"id": str(number)} for number in range(4)],
    }
    assert compare("words", *files).differences["all.long"].difference == 100
    assert compare("words", *files, least=2).differences["all.long"].difference == 0


@pytest.mark.parametrize(
    ("name", "settings", "fault"),
    [
        ("wrods", {}, "no benchmark is named 'wrods'; did you mean 'words'"),
        ("words", {"last": 2}, "no setting is named 'last', did you mean 'least'"),
        ("words", {"least": "two"}, "least is 'two', but must be a whole number"),
        ("words", {"least": 0}, "least is 0, but must be 1 or more"),
        ("words", {"judge": JudgeSettings(model="m")}, "benchmark words takes no judge"),
        ("chair", {}, "benchmark chair needs annotations"),
    ],
)
def test_settings_are_checked(files, name, settings, fault):
    with pytest.raises(SettingError, match=fault):
        score(name, files[0], **settings)


def test_a_judge_that_is_needed_or_has_no_place_for_its_verdicts(files):
    with pytest.raises(SettingError, match="benchmark mmhal needs a judge"):
        score("mmhal", *files)
    with pytest.raises(SettingError, match="next to the answer file"):
        score("mmhal", [], files[1], judge=JudgeSettings(model="m"))


def test_answers_and_annotations_in_memory():
    said = [Answer(None, "1", None, "A dog and a cat.")]
    assert score("chair", said, {"1": frozenset({"dog"})})["chair_i"] == 50
    better = [Answer(None, "1", None, "A dog.")]
    assert compare("chair", said, better, {"1": frozenset({"dog"})}).differences["chair_i"].difference == 50


def test_a_name_of_the_packages_own_is_refused():
    with pytest.raises(SettingError, match="the package has a benchmark named 'chair'"):
        benchmark("chair")(words)
