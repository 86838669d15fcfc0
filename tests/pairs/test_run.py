"""The whole way with a model whose answers are given: pairs, reasons, a killed run, other formats."""

import json

import pytest
from PIL import Image

from mfpo.answer.sample import Sampled
from mfpo.build.pipeline import build
from mfpo.build.settings import BuildSettings
from mfpo.dataset import read_dataset
from mfpo.errors import MfpoError, RecordError
from mfpo.pairs import out as pairs_out
from mfpo.pairs.ask import Asker
from mfpo.pairs.check import open_checker
from mfpo.pairs.questions import open_questions
from mfpo.pairs.run import pairs_into
from mfpo.pairs.settings import PairsSettings
from mfpo.sources import open_source

DOG, CAT = "There is a dog on the grass. The sky is blue.", "There is a cat on the grass. The sky is blue."
# What the model answers by the question's id, where only a dog is there; and why there is no pair, if so.
ANSWERS = {
    "good": ([DOG, CAT], None),
    "again": ([CAT, f"A dog runs. {CAT}"], None),
    "true": ([DOG, "A dog runs."], "no false claim"),
    "false": ([CAT, "A cat runs."], "only false claims"),
    "nothing": (["The sky is blue.", "It is a nice day."], "no claim that could be checked"),
    "empty": (["", " "], "all answers are empty"),
    "cut": ([Sampled("There is a", True)], "all answers were cut at max_new_tokens"),
    "alike": ([f"A dog runs. {CAT}"] * 2, "all answers are alike"),
    "short": (["A dog.", f"{CAT} It is {'very ' * 20}nice. A dog runs."], "no better answer of like length"),
    "failed": (RecordError("the endpoint failed"), "the endpoint failed"),
    "lacks": ([DOG, CAT], "the question brings no objects"),
}


def answers(asked):
    told = [ANSWERS[one.id][0] for one in asked]
    return [
        one if isinstance(one, RecordError) else [a if isinstance(a, Sampled) else Sampled(a, False) for a in one]
        for one in told
    ]


@pytest.fixture
def folder(tmp_path):
    """Questions about a red image, and rows that cannot be asked."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "photos" / "red.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    row = {"image": "red.png", "text": "What is there?", "objects": ["dog"]}
    rows = [row | {"question_id": id} for id in ANSWERS]
    del rows[-1]["objects"]
    rows += [row | {"question_id": "broken", "image": "broken.png"}, row | {"question_id": "good"}, {"id": "x"}]
    lines = [*map(json.dumps, rows), "{broken"]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(folder, out, progress=iter, format="parquet", **values):
    source = open_questions(folder / "questions.jsonl", folder / "photos", 0)
    settings = PairsSettings(shard_size=3, **values)
    asker = Asker({"model": "given"}, answers)
    checker = open_checker("dataset", lambda: asker, out, settings)
    return pairs_into(source, asker, checker, out, settings, format=format, progress=progress)


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_question_has_a_pair_or_a_reason(folder):
    summary = run(folder, folder / "own")
    left_out = [json.loads(line) for line in (folder / "own" / "left_out.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in left_out} == {
        id: reason for id, (_, reason) in ANSWERS.items() if reason and id not in ("failed", "lacks")
    }
    aside = [json.loads(line) for line in (folder / "own" / "rejected_rows.jsonl").read_text().splitlines()]
    assert {row["id"] for row in aside} == {"failed", "lacks", "broken", "good", "x", "14"}
    assert (summary["asked"], summary["answered"], summary["paired"], summary["set_aside"]) == (15, 9, 2, 6)
    assert summary["true_share"] == {"chosen": 2 / 3, "rejected": 0.0}  # a dog; a dog and a cat; against a cat each
    records = {record["id"]: record for record in read_dataset(folder / "own")}
    assert records["good"]["chosen"][0]["content"] == DOG
    assert records["good"]["rejected"][0]["content"] == CAT
    good = records["good"]
    told = [(one, good[one["answer"]][0]["content"]) for one in good["claims"]]
    claims = [(one["answer"], text[one["start"] : one["end"]], one["verdict"]) for one, text in told]
    assert claims == [("chosen", "dog", "true"), ("rejected", "cat", "false")]


def test_corrected_pairs_the_worst_answer_with_itself_put_right(folder):
    run(folder, folder / "own", pairing="corrected")
    records = {record["id"]: record for record in read_dataset(folder / "own")}
    assert set(records) == {"good", "again", "alike", "short"}
    assert records["good"]["rejected"][0]["content"] == CAT
    # The sentence gives way to the other answer's, which is true.
    assert records["good"]["chosen"][0]["content"] == DOG
    assert records["alike"]["chosen"][0]["content"] == "A dog runs. The sky is blue."
    for record in records.values():
        assert {one["verdict"] for one in record["claims"] if one["answer"] == "chosen"} == {"true"}


@pytest.mark.parametrize("moment", [1, 4, 8, 12, "merging"])
@pytest.mark.parametrize("format", ["parquet", "trl"])
def test_a_killed_run_ends_as_if_it_had_not_been(folder, moment, format, monkeypatch):
    def stop(rows):
        for number, row in enumerate(rows):
            if number == moment:
                raise KeyboardInterrupt
            yield row

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if moment == "merging":
            patched.setattr(pairs_out, "reason_kind", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(folder, folder / "own", stop, format)
    assert not (folder / "own").exists()
    run(folder, folder / "own", format=format)
    run(folder, folder / "whole", format=format)
    assert content(folder / "own") == content(folder / "whole")


def test_other_settings_do_not_go_on_with_a_killed_run(folder):
    run(folder, folder / "own")
    (folder / "own").rename(folder / "own.partial")
    with pytest.raises(MfpoError, match="samples was 8 and is 4"):
        run(folder, folder / "own", samples=4)


def test_the_folder_and_both_jsonl_are_sources_of_build(folder):
    run(folder, folder / "own")
    for format in ("trl", "ms-swift"):
        run(folder, folder / format, format=format)
        assert not list((folder / format).glob("*.parquet"))
    global_noise = BuildSettings(corruption="global")
    built = build(folder / "own", folder / "built", global_noise)
    assert built["claims"] == read_dataset(folder / "own")["claims"]
    for format in ("trl", "ms-swift"):
        source = open_source(folder / format / "train.jsonl", format=format)
        other = build(source, folder / f"built-{format}", global_noise)
        for name in ("id", "prompt", "chosen", "rejected"):
            assert other[name] == built[name], (format, name)


def test_without_a_pair_it_is_one_line(folder):
    (folder / "questions.jsonl").write_text(
        json.dumps({"question_id": "true", "image": "red.png", "text": "?", "objects": ["dog"]})
    )
    with pytest.raises(MfpoError, match=r"none of the 1 questions of .* has a pair: 1 x no false claim, the first"):
        run(folder, folder / "own")


def test_images_alone_are_asked_for_a_description(folder):
    source = open_questions(folder / "photos", None, 0)
    rows = list(source)
    assert [row["image"] for row in rows] == ["broken.png", "red.png"]
    assert source.question(rows[1], 1).text == open_questions(folder / "photos", None, 0).question(rows[1], 1).text
    with pytest.raises(RecordError, match="cannot be read"):
        source.question(rows[0], 0)
    before = source.provenance
    assert before["count"] == 2
    assert "red.png" not in json.dumps(before)  # there may be a million
    (folder / "photos" / "red.png").write_bytes(b"another")
    assert open_questions(folder / "photos", None, 0).provenance != before
    (folder / "none").mkdir()
    with pytest.raises(MfpoError, match="no image there"):
        open_questions(folder / "none", None, 0)


def test_inspect_shows_the_claims_in_colour(folder):
    from mfpo.report import inspect

    run(folder, folder / "own")
    html = inspect(folder / "own").read_text()
    assert '<mark class="present differs" title="dog: true">dog</mark>' in html
    assert '<mark class="absent differs" title="cat: false">cat</mark>' in html
    assert "no false claim (1)" in html
    assert html.count("<figure>") == 2  # no regions and no rejected image yet
