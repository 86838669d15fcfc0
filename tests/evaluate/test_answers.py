"""Reading answers, whoever wrote them."""

import gzip
import json

import pytest

from mfpo.answer.replies import without_thoughts
from mfpo.errors import MfpoError
from mfpo.evaluate.answers import (
    Answer,
    Asked,
    answered,
    check_asked,
    check_captions,
    image_key,
    is_another,
    read_answers,
)
from mfpo.files import read_rows, some


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_four_ways_to_write_an_answer(tmp_path):
    path = write(
        tmp_path / "answers.jsonl",
        {"question_id": "q1", "image": "a.png", "prompt": "What?", "text": "A dog.", "model": "m"},
        {"question_id": 2, "prompt": "What?", "text": "A cat.", "answer_id": "x", "model_id": "m", "metadata": {}},
        {"id": 3, "response": "A cow."},
        {"image_id": 4, "caption": "A car."},
        {"question_id": 0, "text": "", "label": "Yes"},
    )
    assert read_answers(path) == [
        Answer("q1", "a.png", "What?", "A dog."),
        Answer("2", None, "What?", "A cat."),
        Answer("3", None, None, "A cow."),
        Answer(None, "4", None, "A car."),
        Answer("0", None, None, "", "yes"),
    ]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"question_id": 1, "text": "a"', "not valid JSON"),
        ("[1]", "is a list"),
        ('"text"', "is a str"),
        ('{"question_id": 1}', "has no text"),
        ('{"question_id": 1, "text": null}', "has no text"),
        ('{"question_id": 1, "text": 5}', "has no text"),
        ('{"text": "a"}', "has no id"),
        ('{"question_id": null, "text": "a"}', "has no id"),
        ('{"question_id": "", "text": "a"}', "question_id is ''"),
        ('{"question_id": 1.5, "text": "a"}', "question_id is 1.5"),
        ('{"question_id": true, "text": "a"}', "question_id is True"),
        ('{"image": ["a.png"], "text": "a"}', r"image is \['a.png'\]"),
        ('{"question_id": 1, "text": "a", "prompt": 3}', "prompt is 3"),
        ('{"question_id": 1, "text": "a", "label": "maybe"}', "label is 'maybe'"),
        ('{"question_id": 1, "text": "a", "label": true}', "label is True"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, fault):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"question_id": 0, "text": "fine"}\n\n' + line + "\n")
    with pytest.raises(MfpoError, match=rf"answers\.jsonl, line 3: .*{fault}") as caught:
        read_answers(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file(tmp_path, content):
    (tmp_path / "empty.jsonl").write_bytes(content)
    with pytest.raises(MfpoError, match=r"empty\.jsonl: is empty"):
        read_answers(tmp_path / "empty.jsonl")


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(MfpoError, match=r"absent\.jsonl: cannot be read \(No such file"):
        read_answers(tmp_path / "absent.jsonl")
    with pytest.raises(MfpoError, match="cannot be read"):
        read_answers(tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.jsonl.gz", gzip.compress(b'{"id": 1, "text": "a"}' * 50, mtime=0)[:-12]),
        ("plain.jsonl.gz", b'{"id": 1, "text": "a"}\n'),
        ("latin.jsonl", '{"id": 1, "text": "café"}'.encode("latin-1")),
    ],
)
def test_bytes_that_are_no_text(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MfpoError, match=rf"{name}.*: (cannot be read|is not UTF-8 text)"):
        read_answers(tmp_path / name)


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes('{"id": 1, "text": "a\u2028b\x85c"}\r\n{"id": 2, "text": "d"}'.encode())
    assert [row["text"] for _, row in read_rows(path)] == ["a\u2028b\x85c", "d"]


@pytest.mark.parametrize(
    ("image", "key"),
    [
        ("COCO_val2014_000000310196.jpg", "310196"),
        ("val2014/COCO_val2014_000000310196.jpg", "310196"),
        ("000000010764.jpg", "10764"),
        ("10764", "10764"),
        ("000", "0"),
        ("scene_007.png", "scene_007.png"),
        ("AMBER_1.jpg", "AMBER_1.jpg"),
    ],
)
def test_names_of_one_image(image, key):
    assert image_key(image) == key


def test_a_json_list_as_ambers_script_takes_it(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text('[{"id": 1, "response": "A dog."},\n {"id": 1005, "response": "Yes"}]')
    assert read_answers(path) == [Answer("1", None, None, "A dog."), Answer("1005", None, None, "Yes")]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('[{"id": 1, "response": "a"}, 5]', "entry 2: is a int"),
        ('[{"id": 1, "response": "a"}, {"id": 2}]', "entry 2: has no text"),
        ("[]", "is an empty list"),
        ('[{"id": 1, "response": "a"}', "not valid JSON"),
    ],
)
def test_a_bad_json_list(tmp_path, content, fault):
    (tmp_path / "answers.json").write_text(content)
    with pytest.raises(MfpoError, match=fault):
        read_answers(tmp_path / "answers.json")


def test_unknown_and_double_ids_are_named_together():
    answers = [Answer(name, None, None, "") for name in ("1", "9", "1", "7", "8", "6")]
    with pytest.raises(
        MfpoError, match=r"4 not in the questions \(9, 7, 8 and 1 more\); 1 answered more than once \(1\)"
    ):
        check_asked(answers, dict.fromkeys("12", Asked()), "these", allow_missing=True)


ASKED = {"1": Asked("Is there a dog?", ("COCO_val2014_000000000009.jpg",)), "2": Asked("A cat?", ("a/b.png", "c.png"))}


@pytest.mark.parametrize(
    ("question_id", "image", "prompt"),
    [
        ("1", None, None),
        ("1", "9", "Is there a dog?"),
        ("1", "val2014/000000000009.jpg", "<image>\nIs there  a dog? Answer yes or no."),
        ("2", "b.jpg", None),
        ("2", "x/c.png", "A cat?"),
    ],
)
def test_an_answer_to_the_question(question_id, image, prompt):
    given = Answer(question_id, image, prompt, "Yes")
    assert check_asked([given], ASKED, "these", allow_missing=True) == {question_id: given}


@pytest.mark.parametrize(
    ("question_id", "image", "prompt"),
    [("1", "10.jpg", None), ("1", "9", "Is there a dot?"), ("2", "d.png", "A cat?"), ("2", None, "A dog?")],
)
def test_an_answer_to_another_question(question_id, image, prompt):
    with pytest.raises(
        MfpoError, match=rf"1 of 1 answers have a different image or prompt .*\({question_id}\); .* these"
    ):
        check_asked([Answer(question_id, image, prompt, "Yes")], ASKED, "these", allow_missing=True)


def test_a_failed_question_is_a_missing_answer(tmp_path):
    """As `mfpo answer` writes them."""
    path = write(
        tmp_path / "answers.jsonl",
        {"question_id": 1, "image": "9.jpg", "prompt": "Is there a dog?", "text": None, "error": "out of memory"},
        {"question_id": 2, "text": "No", "error": None},
    )
    answers = read_answers(path)
    assert [answer.failed for answer in answers] == [True, False]
    with pytest.raises(MfpoError, match=r"1 of 2 questions have an error .*\(1\); .*--retry-failed.*allow_missing"):
        check_asked(answers, ASKED, "these")
    assert list(check_asked(answers, ASKED, "these", allow_missing=True)) == ["2"]
    with pytest.raises(MfpoError, match="1 of 1 questions have an error"):
        answered(answers[:1], allow_missing=True)


def test_some():
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>A dog? No.</think>\n\nYes.", "Yes."),
        ("A dog? No.\n</think>\n\nYes.", "Yes."),
        ("<think>A dog? No", ""),
        ("<think></think>Yes", "Yes"),
        ("<think>a</think> A dog <think>b</think>and a cat.", "A dog and a cat."),
        ("<think>a</think>A dog.<think>or a", "A dog."),
        ("a</think>b</think>Yes", "Yes"),
        ("<think>a<think>b</think>c</think>Yes", "Yes"),
        ("a</think>A dog.<think>b", "A dog."),
        ("<THINK>a</Think>Yes", "Yes"),
        ("<thinking>a</thinking>Yes", "Yes"),
        ("◁think▷a◁/think▷Yes", "Yes"),
        ("</think>", ""),
        ("<think>", ""),
        (" I think so. <thinker>\n", " I think so. <thinker>\n"),
        ("<thought>a</thought>Yes", "Yes"),
        ("<reasoning>a</reasoning>Yes", "Yes"),
        ("[THINK]a[/THINK]Yes", "Yes"),
        ("a[/THINK]Yes", "Yes"),
        ("[THINK]a", ""),
        ("<|begin_of_thought|>a<|end_of_thought|>Yes", "Yes"),
        ("a<|end_of_thought|>Yes", "Yes"),
        ("<seed:think>a</seed:think>Yes", "Yes"),
        ("< think >a< / think >Yes", "Yes"),
        ('<think type="x">a</think>Yes', "Yes"),
        ("A dog. [Reasoning] It barks.", "A dog. [Reasoning] It barks."),
        ("A <think about it> dog", "A <think about it> dog"),
        ("I [think] so", "I [think] so"),
    ],
)
def test_thoughts_are_not_said(text, said):
    assert without_thoughts(text) == said


def test_many_tags_take_no_time():
    assert without_thoughts("<think>" * 100_000) == ""
    assert without_thoughts("<think>a</think>b" * 50_000) == "b" * 50_000
    for part in ("<", "< ", "<think ", "<think a=", "[", "<" + " " * 100):
        assert without_thoughts(part * 10_000) == part * 10_000
    assert without_thoughts("<" + " " * 100_000) == "<" + " " * 100_000


def test_thoughts_of_an_answer_are_left_out_and_marked(tmp_path):
    rows = [{"id": 1, "text": "<think>A cat?</think> A dog."}, {"id": 2, "text": " A dog."}]
    first, second = read_answers(write(tmp_path / "a.jsonl", *rows))
    assert (first.text, first.thinking, second.text, second.thinking) == ("A dog.", True, " A dog.", False)


def test_a_message_repeats_no_long_or_broken_name():
    assert some(["a\nb\u2028c", "x" * 500]) == f"a b c, {'x' * 80}"


@pytest.mark.parametrize("texts", [["Yes", ""], ["1. Yes", "(b) **No**"], ["Answer: yes, a dog", "No dog"]])
def test_answers_that_are_no_captions(texts):
    with pytest.raises(MfpoError, match=r"all \d answers begin with yes or no"):
        check_captions(texts)
    check_captions([*texts, "Nobody is here."])


@pytest.mark.parametrize(
    ("answered_image", "asked_image", "other"),
    [
        ("scene.1", "scene.1.jpg", False),
        ("img.2", "img.1", True),
        ("a.PNG", "photos/a.jpg", False),
        ("42", "COCO_val2014_000000000042.jpg", False),
    ],
)
def test_only_an_extension_is_taken_off_an_image(answered_image, asked_image, other):
    assert is_another(Answer("1", answered_image, None, "a"), Asked("", (asked_image,))) == other
