"""Question files as LLaVA, POPE, AMBER and MMHal-Bench publish them."""

import base64
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mfpo.answer.collect import Engine, collect
from mfpo.answer.questions import read_questions
from mfpo.errors import MfpoError
from mfpo.images import encode_image, load_image


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "red.png")
    Image.effect_noise((64, 64), 50).convert("RGB").save(folder / "broken.png")
    (folder / "broken.png").write_bytes((folder / "broken.png").read_bytes()[:2000])
    (folder / "notes.txt").write_text("no image")
    return folder


def write(path, rows):
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("name", "row", "question"),
    [
        ("llava.jsonl", {"question_id": 7, "image": "red.png", "text": "What?\n<image>", "category": "conv"}, {}),
        ("llava_start.jsonl", {"question_id": "7", "image": "red.png", "text": "<image>\nWhat?"}, {}),
        ("pope.jsonl", {"question_id": 7, "image": "red.png", "text": "What?", "label": "Yes"}, {"label": "yes"}),
        ("amber.json", {"id": 7, "image": "red.png", "query": "What?"}, {}),
        (
            "mmhal.json",
            {"image_id": "df62", "image_src": "https://flickr.example/8/red.png", "question": "What?"}
            | {"gt_answer": "A wall.", "model_answer": ""},
            {"question_id": "0"},
        ),
    ],
)
def test_published_forms_are_one_question(tmp_path, images, name, row, question):
    expected = {"question_id": "7", "image": "red.png", "text": "What?"} | question
    assert read_questions(write(tmp_path / name, [row]), images) == [expected]


def test_hallusionbench_is_asked_by_its_scripts_names_where_it_has_a_figure(tmp_path, images, caplog):
    row = {"category": "VS", "subcategory": "chart", "visual_input": "1", "set_id": "0", "figure_id": "1"}
    row |= {"question_id": "2", "question": "What?", "gt_answer": "0", "filename": "./red.png"}
    rows = [row | {"figure_id": "0", "visual_input": "0", "filename": None}, row]
    (question,) = read_questions(write(tmp_path / "HallusionBench.json", rows), images)
    assert question == {"question_id": "VS_chart_0_1_2", "image": "./red.png", "text": "What?"}
    assert "1 questions of HallusionBench have no figure" in caplog.text


@pytest.mark.parametrize(
    "name", ["amber/query_generative.json", "mmhal/mmhal-bench_answer_template.json", "pope/coco_pope_random.jsonl"]
)
def test_the_benchmarks_own_files_are_read(reference_data, tmp_path, images, name):
    rows = json.loads(path.read_text()) if (path := reference_data / name).suffix == ".json" else None
    rows = rows or [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:100]:
        image = row.get("image") or row["image_src"].rpartition("/")[2]
        Image.new("RGB", (2, 2)).save(images / image)
    questions = read_questions(write(tmp_path / path.name, rows[:100]), images)
    assert [question["text"] for question in questions] == [
        (row.get("text") or row.get("query") or row.get("question")).strip() for row in rows[:100]
    ]


NOISE = Image.effect_noise((48, 48), 50).convert("RGB")
BASE64 = base64.b64encode(encode_image(NOISE)["bytes"]).decode()
GOOD = {"question_id": 1, "image": "red.png", "text": "What is it?"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([GOOD, GOOD], "line 2: question_id '1' appears a second time"),
        ([GOOD, GOOD | {"question_id": "1"}], "line 2: question_id '1' appears a second time"),
        ([GOOD | {"text": "  "}], "line 1: a question needs question_id, image and text"),
        ([GOOD | {"text": 3}], "line 1: a question needs"),
        ([{"image": "red.png", "text": "What?"}], "line 1: a question needs"),
        ([GOOD | {"question_id": 1.5}], "question_id is 1.5"),
        ([GOOD, GOOD | {"question_id": 2, "image": "blue.png"}], "line 2: image 'blue.png' is not in"),
        ([GOOD | {"image": "../questions.jsonl"}], "leaves the image folder"),
        ([GOOD | {"image": "notes.txt"}], "line 1: "),
        ([GOOD | {"image": "broken.png"}], "line 1: "),
        ([{"question_id": 1, "text": "What?"}], "line 1: a question needs question_id, image and text"),
        ([GOOD | {"image": ["red.png"]}], "line 1: a question needs"),
        ([GOOD, GOOD | {"question_id": 2, "image": 5}], "line 2: a question needs"),
        ([GOOD | {"label": "maybe"}], "label is 'maybe'"),
        ([GOOD | {"text": "<image>"}], "line 1: the text is nothing but '<image>'; give a question"),
        ([GOOD | {"text": "<image> or <image>?"}], "line 1: <image> occurs 2 times in the prompt, but the number of"),
        ([GOOD | {"image": BASE64[:600]}], r"line 1: image 'base64-\w{12}' cannot be read"),
        ([GOOD | {"image": BASE64 + "*" * 9000}], r"line 1: image 'base64-\w{12}' is not valid base64"),
        ([GOOD | {"image": "x" * 300_000}], r"line 1: image 'x{80}\.\.\.' is neither a path nor the base64 of a JPEG"),
        ([GOOD | {"question_id": ["x" * 300_000]}], r"question_id is \['x{78}\.\.\., but must be"),
        ([GOOD | {"question_id": "x" * 300_000}] * 2, r"line 2: question_id 'x{80}\.\.\.' appears a second time"),
        ([GOOD | {"label": "x" * 300_000}], r"label is 'x{80}\.\.\.', but must be"),
        ([GOOD | {"prompt": "What is it?", "text": "A wall."}], "line 1: is an answer, not a question"),
    ],
)
def test_bad_questions_are_named(tmp_path, images, rows, words):
    with pytest.raises(MfpoError, match=words) as error:
        read_questions(write(tmp_path / "questions.jsonl", rows), images)
    assert "questions.jsonl" in str(error.value)


def test_the_first_of_several_bad_images_and_their_number(tmp_path, images):
    names = ["red.png", "broken.png", "none.png", "broken.png", "notes.txt"]
    rows = [{"question_id": number, "image": name, "text": "What?"} for number, name in enumerate(names)]
    with pytest.raises(MfpoError, match=r"line 2: .*broken\.png.* \(and 2 more cannot be read\)"):
        read_questions(write(tmp_path / "q.jsonl", rows), images)


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path, images):
    path = write(tmp_path / "questions.jsonl", [GOOD | {"text": "What is \ud83d it?"}])
    assert read_questions(path, images)[0]["text"] == "What is ? it?"


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000 + "]" * 100_000])
def test_json_that_python_refuses_is_named(tmp_path, images, value):
    row = json.dumps(GOOD | {"label": 0}).replace("0}", value + "}")
    for name, text in (("q.jsonl", row + "\n"), ("q.json", f"[{row}]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(MfpoError, match=rf"{name}.*: holds a number with thousands of digits, or brackets"):
            read_questions(tmp_path / name, images)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<image>\nWhat?", "What?"),
        ("What?\n<image>", "What?"),
        ("What is in <image> here?", "What is in <image> here?"),
    ],
)
def test_the_place_of_the_image_is_kept_within_the_text(tmp_path, images, text, kept):
    path = write(tmp_path / "questions.jsonl", [GOOD | {"text": text}])
    assert read_questions(path, images)[0]["text"] == kept


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"image": BASE64}, r"base64-\w{12}"),
        ({"image": "data:image/png;base64," + BASE64}, r"base64-\w{12}"),
        ({"image": {"url": " DATA:image/png;x=1;BASE64," + BASE64}}, r"base64-\w{12}"),
        ({"image": {"image_url": {"url": "data:image/png;base64," + BASE64}}}, r"base64-\w{12}"),
        ({"image": BASE64.replace("/", "_").replace("+", "-")}, r"base64-\w{12}"),
        ({"image": BASE64, "image_id": 310196}, "310196"),
        ({"image": BASE64, "image_path": "val2014/a.png"}, "val2014/a.png"),
    ],
)
def test_answers_to_an_image_in_base64_call_it_by_a_name(tmp_path, images, row, name):
    questions = read_questions(write(tmp_path / "questions.jsonl", [GOOD | row]), images)
    assert load_image(images, questions[0]["image"])["bytes"] == encode_image(NOISE)["bytes"]

    def ask(left):
        return ((question, {"text": "Noise."}) for question in left)

    (line,) = collect(questions, Engine({"model": "m", "decode": {}}, ask))
    assert re.fullmatch(name, line["image"])
    assert line.keys() == {"question_id", "image", "prompt", "text", "model", "decode"}


def test_an_array_called_jsonl(tmp_path, images):
    (tmp_path / "questions.jsonl").write_text(json.dumps([GOOD, GOOD | {"question_id": 2}]))
    assert len(read_questions(tmp_path / "questions.jsonl", images)) == 2


LONG = "x" * 10_000
VALUES = {
    "question_id": [0, -1, 1.5, True, None, "", " ", "a", "a\nb", "\ud800", LONG, [], {}, 10**30],
    "image": [
        *("red.png", "./red.png", "../images/red.png", "../questions.jsonl", "/etc/passwd", "broken.png", "notes.txt"),
        *("", " ", "a\0b", "\ud800.png", LONG, "../" * 3000, None, 7, ["red.png"], {"bytes": BASE64}, ".", "/"),
        *(BASE64, BASE64[:100], BASE64[:-500], BASE64 + "!", BASE64.replace("A", "-"), "/9j/" + LONG),
        *(
            "data:image/png;base64," + BASE64,
            "data:image/png;base64,",
            "data:;base64,x",
            "data:text/a;base64," + BASE64,
        ),
    ],
    "text": [
        *("What?", "<image>\nWhat?", "What?<image>", "A <image> b", "<image>", "<image><image>", "<image> a <image>"),
        *("", " ", "\n", None, 7, [], {}, "\ud800", "\0", LONG, [{"type": "text", "text": "What?"}]),
    ],
    "label": ["yes", "No", "maybe", None, 7, [], LONG],
    "image_id": [7, "a", None, 1.5, [], LONG, ""],
    "prompt": [None, "a", LONG],
    "image_src": ["http://a/red.png", "red.png", None, 7, LONG],
}


@st.composite
def mutated(draw):
    row = dict(GOOD)
    for key in draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=3)):
        row[key] = draw(st.sampled_from(VALUES[key]))
        if draw(st.integers(0, 9)) == 0:
            del row[key]
    return row


def test_500_mutated_questions(tmp_path, images):
    """Each is a question whose image can be read and whose answer can be written, or one line says what is wrong."""
    ends = {"read": 0, "refused": 0}

    @settings(max_examples=500, derandomize=True, deadline=None, database=None)
    @given(mutated())
    def each(row):
        try:
            (question,) = read_questions(write(tmp_path / "questions.jsonl", [row]), images)
        except MfpoError as error:
            reason = str(error)
        else:
            check_question(question, row)
            return
        assert reason.startswith(str(tmp_path / "questions.jsonl"))
        assert "\n" not in reason
        assert len(reason) < 500
        ends["refused"] += 1

    def check_question(question, row):
        ends["read"] += 1
        assert load_image(images, question["image"])["bytes"]
        assert question["text"].strip()
        assert question["text"].count("<image>") <= 1
        out = tmp_path / "answers.jsonl"
        engine = Engine({"model": "m", "decode": {}}, lambda left: ((question, {"text": "A."}) for question in left))
        collect([question], engine, out)
        assert len(json.loads(out.read_text())["image"]) < 300 or "image_id" in row
        out.unlink()

    each()
    assert min(ends.values()) > 100
