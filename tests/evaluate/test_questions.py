"""Question files as LLaVA, POPE, AMBER and MMHal-Bench publish them."""

import json

import pytest
from PIL import Image

from mfpo.errors import MfpoError
from mfpo.evaluate.questions import read_questions


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


GOOD = {"question_id": 1, "image": "red.png", "text": "What is it?"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([GOOD, GOOD], "line 2: question_id 1 comes a second time"),
        ([GOOD, GOOD | {"question_id": "1"}], "line 2: question_id 1 comes a second time"),
        ([GOOD | {"text": "  "}], "line 1: a question is question_id, image and text"),
        ([GOOD | {"text": 3}], "line 1: a question is"),
        ([{"image": "red.png", "text": "What?"}], "line 1: a question is"),
        ([GOOD | {"question_id": 1.5}], "question_id is 1.5"),
        ([GOOD, GOOD | {"question_id": 2, "image": "blue.png"}], "line 2: image 'blue.png' is not in"),
        ([GOOD | {"image": "../questions.jsonl"}], "leaves the image folder"),
        ([GOOD | {"image": "notes.txt"}], "line 1: "),
        ([GOOD | {"image": "broken.png"}], "line 1: "),
        ([{"question_id": 1, "text": "What?"}], "line 1: a question is question_id, image and text"),
        ([GOOD | {"image": ["red.png"]}], "line 1: a question is"),
        ([GOOD, GOOD | {"question_id": 2, "image": 5}], "line 2: a question is"),
        ([GOOD | {"label": "maybe"}], "label is 'maybe'"),
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
        with pytest.raises(MfpoError, match=rf"{name}.*: holds a number of thousands of digits, or brackets"):
            read_questions(tmp_path / name, images)
