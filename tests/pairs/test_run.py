"""The whole way with a model whose answers are given: pairs, reasons, a killed run, other formats."""

import json
import os

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
    "equal": ([f"A dog runs. {CAT}", f"{CAT} A dog runs."], "all answers are equally true"),
    "short": (["A dog.", f"{CAT} It is {'very ' * 20}nice. A dog runs."], "no better answer of like length"),
    "single": ([f"A dog runs. {CAT}", "It is a nice day."], "only one answer has claims that could be checked"),
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
    rows += [row | {"question_id": "\ud800"}]
    lines = [*map(json.dumps, rows), "{broken"]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(folder, out, progress=iter, format="parquet", **values):
    source = open_questions(folder / "questions.jsonl", folder / "photos", 0)
    settings = PairsSettings(shard_size=3, **values)
    asker = Asker({"model": "given"}, answers)
    checker = open_checker("dataset", lambda: asker, out, settings)
    return pairs_into(source, asker, checker, out, settings, format=format, progress=progress)


def killed(rows, moment):
    for number, row in enumerate(rows):
        if number == moment:
            raise KeyboardInterrupt
        yield row


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_question_has_a_pair_or_a_reason(folder):
    summary = run(folder, folder / "own")
    left_out = [json.loads(line) for line in (folder / "own" / "left_out.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in left_out} == {
        id: reason for id, (_, reason) in ANSWERS.items() if reason and id not in ("failed", "lacks")
    }
    aside = [json.loads(line) for line in (folder / "own" / "rejected_rows.jsonl").read_text().splitlines()]
    assert {row["id"] for row in aside} == {"failed", "lacks", "broken", "good", "x", r"\ud800", "17"}
    assert (summary["asked"], summary["answered"], summary["paired"], summary["set_aside"]) == (18, 11, 2, 7)
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
    assert set(records) == {"good", "again", "alike", "equal", "short", "single"}
    assert records["good"]["rejected"][0]["content"] == CAT
    # The sentence gives way to the other answer's, which is true.
    assert records["good"]["chosen"][0]["content"] == DOG
    assert records["alike"]["chosen"][0]["content"] == "A dog runs. The sky is blue."
    for record in records.values():
        assert {one["verdict"] for one in record["claims"] if one["answer"] == "chosen"} == {"true"}


@pytest.mark.parametrize("moment", [1, 4, 8, 12, "merging"])
@pytest.mark.parametrize("format", ["parquet", "trl"])
def test_a_killed_run_ends_as_if_it_had_not_been(folder, moment, format, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if moment == "merging":
            patched.setattr(pairs_out, "reason_kind", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(folder, folder / "own", lambda rows: killed(rows, moment), format)
    assert not (folder / "own").exists()
    run(folder, folder / "own", format=format)
    run(folder, folder / "whole", format=format)
    assert content(folder / "own") == content(folder / "whole")


def test_other_settings_do_not_go_on_with_a_killed_run(folder):
    with pytest.raises(KeyboardInterrupt):
        run(folder, folder / "own", lambda rows: killed(rows, 4))
    with pytest.raises(MfpoError, match="samples was 8 and is 4"):
        run(folder, folder / "own", samples=4)


def test_a_run_killed_before_its_first_shard_is_no_obstacle(folder):
    with pytest.raises(KeyboardInterrupt):
        run(folder, folder / "own", lambda rows: killed(rows, 2))
    assert run(folder, folder / "own", samples=4)["paired"] == 2


def test_a_mended_file_or_other_settings_may_follow_on_a_run_without_a_pair(folder):
    whole = (folder / "questions.jsonl").read_text()
    (folder / "questions.jsonl").write_text(whole.splitlines()[2])
    with pytest.raises(MfpoError, match="none of the 1 questions"):
        run(folder, folder / "own")
    with pytest.raises(MfpoError, match="none of the 1 questions"):
        run(folder, folder / "own", samples=4)
    (folder / "questions.jsonl").write_text(whole)
    assert run(folder, folder / "own")["paired"] == 2


def ask_about(folder, *ids):
    """Questions with these ids about the red image; of one with a star about an image that is not there."""
    row = {"image": "red.png", "text": "What is there?", "objects": ["dog"]}
    rows = [row | {"question_id": id.strip("*")} | ({"image": "no.png"} if "*" in id else {}) for id in ids]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def numbers_aside(folder):
    return [json.loads(line)["row"] for line in (folder / "rejected_rows.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("ids", "aside"),
    [
        # An id is that of the first row that can be asked, in its own shard of three or in another.
        (["good*", "good", "good", "true", "good"], [0, 2, 4]),
        (["true", "true", "good*", "good*", "good", "true"], [1, 2, 3, 5]),
        # One that the endpoint fails has none either, once its shard is done.
        (["failed", "failed", "true", "good", "failed", "good"], [0, 1, 4, 5]),
    ],
)
def test_a_row_that_cannot_be_asked_takes_no_id(folder, ids, aside):
    ask_about(folder, *ids)
    summary = run(folder, folder / "whole")
    assert (summary["paired"], summary["set_aside"]) == (1, len(aside))
    assert sorted(numbers_aside(folder / "whole")) == aside
    with pytest.raises(KeyboardInterrupt):
        run(folder, folder / "own", lambda rows: killed(rows, 4))
    run(folder, folder / "own")
    assert content(folder / "own") == content(folder / "whole")


def test_hallusionbenchs_questions_are_told_apart_and_need_a_figure(folder):
    row = {"category": "VD", "subcategory": "illusion", "set_id": "0", "figure_id": "1", "question_id": "0"}
    row |= {"question": "What is there?", "gt_answer": "1", "filename": "./red.png"}
    rows = [row, row | {"figure_id": "2"}, row | {"subcategory": "math"}, row | {"figure_id": "0", "filename": None}]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_questions(folder / "questions.jsonl", folder / "photos", 0)
    rows = list(source)
    asked = [source.question(row, number) for number, row in enumerate(rows[:3])]
    assert [one.id for one in asked] == ["VD_illusion_0_1_0", "VD_illusion_0_2_0", "VD_math_0_1_0"]
    assert [one.id for one in asked] == [source.id(row, number) for number, row in enumerate(rows[:3])]
    with pytest.raises(RecordError, match=r"questions\.jsonl, line 4: the question has no figure"):
        source.question(rows[3], 3)


def test_an_image_whose_name_is_no_utf8_is_set_aside(folder, monkeypatch):
    photos = os.fsencode(folder / "photos")
    try:
        os.rename(photos + b"/broken.png", photos + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    monkeypatch.setitem(ANSWERS, "red.png", ([DOG, CAT], None))
    settings = PairsSettings()
    asker = Asker({"model": "given"}, answers)
    (folder / "truth.jsonl").write_text(json.dumps({"image_id": "red.png", "objects": ["dog"]}))
    checker = open_checker(f"coco={folder / 'truth.jsonl'}", lambda: asker, folder / "own", settings)
    summary = pairs_into(open_questions(folder / "photos", None, 0), asker, checker, folder / "own", settings)
    assert (summary["paired"], summary["reasons"]) == (1, {"image has a name that is not UTF-8; rename it": 1})
    (aside,) = map(json.loads, (folder / "own" / "rejected_rows.jsonl").read_text().splitlines())
    assert aside["id"] == r"caf\udce9.png"


def test_the_folder_and_both_jsonl_are_sources_of_build(folder):
    run(folder, folder / "own")
    for format in ("trl", "ms-swift"):
        run(folder, folder / format, format=format)
        assert not list((folder / format).glob("*.parquet"))
    global_noise = BuildSettings(corruption="global")
    built = build(folder / "own", folder / "built", global_noise)
    assert built["claims"] == read_dataset(folder / "own")["claims"]
    for format in ("trl", "ms-swift"):
        file = folder / format / "train.jsonl"
        for source in (open_source(file, format=format), open_source(folder / format)):
            assert (source.format, source.left_out) == (format, [])
            other = build(source, folder / f"built-{format}-{source.name}", global_noise)
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
