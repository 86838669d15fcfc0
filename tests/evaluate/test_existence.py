"""Existence questions: reading yes and no, and POPE's figures."""

import json
import random

import pytest

from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer
from mfpo.evaluate.existence import (
    YesNoQuestion,
    existence,
    load_questions,
    questions_in,
    read_existence_answers,
    read_yes_no,
)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(question_id, text, label=None):
    return Answer(question_id, None, None, text, label)


def asked(labels):
    return [YesNoQuestion(name, f"{name}.jpg", "Is it?", label) for name, label in labels.items()]


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("Yes", "yes"),
        ("yes, there is a dog in the image.", "yes"),
        ("There is a dog in the image.", "yes"),
        ("No.", "no"),
        ("NO", "no"),
        ("No, there is no dog. Yes, a cat.", "no"),
        ("Yes. There is no cat, though.", "yes"),
        ("Yes\nNo", "yes"),
        ("Yes! It is not hidden.", "yes"),
        ("There is not a dog", "no"),
        ("There isn't a dog", "no"),
        ("There isn’t a dog", "no"),
        ("I cannot see one", "no"),
        ("", None),
        ("  \n", None),
        ("A dog", None),
        ("Is there a dog", None),
        ("Yes, there is a no-parking sign.", "yes"),
        ("Yes, there are 2 (not 3) dogs.", "yes"),
        ("Yes, there is a dog, but no cat.", "yes"),
        ("Yes; not", "yes"),
        ("Yes.No", "yes"),
        ("No, yes is wrong", "no"),
        ("1. Yes", "yes"),
        ("(2) no", "no"),
        ("1. There is a dog.", "yes"),
        ("**Yes**, no doubt", "yes"),
        ("_No_", "no"),
        ("“Yes,” not “No”", "yes"),
        ("- No, there is one", "no"),
        ("Answer: yes, not a cat", "yes"),
        ("**Final answer:** No.", "no"),
        ("The answer is yes, not no.", "yes"),
        ("The answer is not yes", "no"),
        ("<answer>Yes</answer> not", "yes"),
        ("(A) Yes, and no cat", "yes"),
        ("a) no", "no"),
        ("A. Not there.", "no"),
        ("Yes or no: Yes, and no cat", "yes"),
        ("Yes/No", None),
        ("A no-parking sign", "no"),
        ("2 no-parking signs", "no"),
        ("There is a no-parking sign.", "no"),
        ("Question 3: Yes, not a cat.", "yes"),
        ("Question: Is there a dog? Answer: No", "no"),
        ("Answer with yes or no: yes, no cat", "yes"),
        ("Please answer yes or no. Yes", None),
        ("The correct answer is yes, it is not a cat", "yes"),
        ("The correct final answer is: no, yes is wrong", "no"),
        ("I'd say yes, but not sure", "yes"),
        ("I'd say **yes**; no doubt", "yes"),
        ("I'd not say yes, but no", "no"),
        ("I cannot say yes as there is no dog", "no"),
        ("There is a dog, no cat", "no"),
        ("Is there a dog in the image? No", "no"),
        ("Is there a dog, or no dog, in the image?\nYes, there is.", "yes"),
        ("Q: Is there a dog? A: yes", "yes"),
        ("Isn't there a dog? Yes", "yes"),
        ("Is there a dog? There isn't.", "no"),
        ("Is there a dog?", None),
        ("There is a dog, right? No cats.", "yes"),
        ("Yep", "yes"),
        ("Yeah, not a cat", "yes"),
        ("Nope.", "no"),
        ("yes | no", None),
        ("Yes, or no", None),
        ("**Yes** / **No**", None),
        ("no/yes", None),
        ("It may be yes or no", None),
        ("yes/no: no", "no"),
    ],
)
def test_reading(text, reading):
    assert read_yes_no(text) == reading


@pytest.mark.parametrize("text", ["Yes, nothing blocks the notebook", "Yes, a noble dog on a knot", "yesterday"])
def test_nothing_notebook_and_noble_are_not_no(text):
    assert read_yes_no(text) != "no"


def test_yesterday_is_not_yes():
    assert read_yes_no("yesterday") is None


def pope_script(texts, labels):
    """POPE's own rule and figures, in percent: whatever is not a "no" is a "yes"."""
    words = [text.split(".")[0].replace(",", "").split(" ") for text in texts]
    said = [0 if "No" in w or "not" in w or "no" in w else 1 for w in words]
    true = [1 if label == "yes" else 0 for label in labels]
    tp = sum(s and t for s, t in zip(said, true, strict=True))
    fp = sum(s and not t for s, t in zip(said, true, strict=True))
    fn = sum(not s and t for s, t in zip(said, true, strict=True))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    accuracy = sum(s == t for s, t in zip(said, true, strict=True)) / len(true)
    f1 = 2 * precision * recall / (precision + recall)
    return [100 * value for value in (accuracy, precision, recall, f1, sum(said) / len(said))]


def test_figures_equal_popes_where_every_answer_is_readable():
    draw = random.Random(0)
    labels = {str(number): draw.choice(["yes", "no"]) for number in range(300)}
    texts = draw.choices(["Yes, there is.", "No, there is not.", "There is no dog. Yes.", "There is a dog."], k=300)
    result = existence([answer(name, text) for name, text in zip(labels, texts, strict=True)], asked(labels))
    figures = [result["accuracy"], result["precision"], result["recall"], result["f1"], result["yes_ratio"]]
    assert figures == pytest.approx(pope_script(texts, labels.values()), rel=1e-12)
    assert (result.facts["questions"], result.facts["unreadable"]) == (300, 0)


def test_an_unreadable_answer_is_wrong_and_no_yes():
    labels = {"1": "yes", "2": "no", "3": "yes", "4": "no"}
    result = existence([answer("4", "hm"), answer("3", ""), answer("2", "No"), answer("1", "Yes")], asked(labels))
    assert (result["accuracy"], result["precision"], result["recall"]) == (50, 100, 50)
    assert (result["yes_ratio"], result.facts["unreadable"]) == (25, 2)
    assert result["f1"] == pytest.approx(200 / 3)


def test_missing_answers_are_counted_when_allowed():
    labels = {str(number): "yes" for number in range(10)}
    result = existence([answer("1", "Yes"), answer("2", "No")], asked(labels), allow_missing=True)
    assert (result["accuracy"], result.facts["questions"], result.facts["missing"]) == (50, 2, 8)
    assert result.figures["accuracy"].n == 2


def test_always_no_has_no_precision():
    result = existence([answer("1", "No"), answer("2", "No")], asked({"1": "yes", "2": "no"}))
    assert (result["accuracy"], result["precision"], result["recall"], result["f1"], result["yes_ratio"]) == (
        50,
        0,
        0,
        0,
        0,
    )


def test_missing_double_and_unknown_questions_are_all_named():
    answers = [answer("1", "No"), answer("1", "Yes"), answer("9", "No")]
    with pytest.raises(MfpoError) as caught:
        existence(answers, asked({str(number): "no" for number in range(1, 7)}))
    assert "1 not in the questions (9)" in str(caught.value)
    assert "1 answered more than once (1)" in str(caught.value)
    assert "5 without an answer (2, 3, 4 and 2 more)" in str(caught.value)
    with pytest.raises(MfpoError, match="no question"):
        existence(answers, [])


def test_an_answer_without_question_id():
    with pytest.raises(MfpoError, match="1 of 2 answers have no question_id"):
        existence([answer("1", "No"), Answer(None, "7", None, "No")], asked({"1": "no"}))


def test_labels_that_the_answers_bring():
    answers = [answer("1", "No", "no"), Answer("2", "a.jpg", "Is it?", "No", "yes")]
    assert questions_in(answers) == [YesNoQuestion("1", "", "", "no"), YesNoQuestion("2", "a.jpg", "Is it?", "yes")]
    assert existence(answers, questions_in(answers))["accuracy"] == 50
    with pytest.raises(MfpoError, match="question 2: no label"):
        questions_in([answer("1", "No", "no"), answer("2", "No")])


@pytest.mark.parametrize("split", ["random", "popular", "adversarial"])
def test_popes_questions(reference_data, split):
    path = reference_data / "pope" / f"coco_pope_{split}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    questions = load_questions(path)
    assert [(question.question_id, question.image, question.text, question.label) for question in questions] == [
        (str(row["question_id"]), row["image"], row["text"], row["label"]) for row in rows
    ]
    result = existence([answer(question.question_id, "Yes") for question in questions], questions)
    share = 100 * sum(row["label"] == "yes" for row in rows) / len(rows)
    assert (result["accuracy"], result["precision"], result["recall"], result["yes_ratio"]) == (share, share, 100, 100)


def test_rows_of_dash_b_are_questions(tmp_path):
    row = {"dataset": "dash", "object": "banjo", "question": "Can you see a banjo in this image. Yes or no?"}
    rows = [
        row | {"answer": label, "image_path": f"{n}.jpg", "question_id": n} for n, label in enumerate(["no", "Yes"])
    ]
    (tmp_path / "dash.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    questions = load_questions(tmp_path / "dash.jsonl")
    assert [(one.question_id, one.image, one.label) for one in questions] == [
        ("0", "0.jpg", "no"),
        ("1", "1.jpg", "yes"),
    ]
    assert existence([answer("0", "Yes"), answer("1", "Yes")], questions)["accuracy"] == 50


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"question_id": 2, "image": "a.jpg", "text": "Is it?"}', "line 2: is missing required fields"),
        ('{"question_id": 2, "image": "a.jpg", "label": "no"}', "line 2: is missing required fields"),
        ('{"image": "a.jpg", "text": "Is it?", "label": "no"}', "line 2: is missing required fields"),
        ('{"question_id": 2, "image": "a.jpg", "text": "Is it?", "label": "nope"}', "line 2: label is 'nope'"),
        ('{"question_id": "1", "image": "a.jpg", "text": "Is it?", "label": "no"}', "line 2: question_id 1 appears a"),
    ],
)
def test_a_bad_question_is_named(tmp_path, line, fault):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "yes"}\n' + line)
    with pytest.raises(MfpoError, match=fault):
        load_questions(path)


def test_answers_to_other_questions_with_the_same_ids(reference_data):
    folder = reference_data / "pope"
    popular, adversarial = (load_questions(folder / f"coco_pope_{split}.jsonl") for split in ("popular", "adversarial"))
    answers = [Answer(one.question_id, one.image, one.text, one.label) for one in adversarial]
    assert existence(answers, adversarial)["accuracy"] == 100
    with pytest.raises(MfpoError, match=r"of 3000 answers have a different image or prompt from their question \("):
        existence(answers, popular)


def test_a_label_that_is_not_the_questions():
    asked = [YesNoQuestion("1", "1.jpg", "A dog?", "yes"), YesNoQuestion("2", "1.jpg", "A cat?", "no")]
    given = [Answer("1", None, None, "Yes", "yes"), Answer("2", None, None, "No", "yes")]
    with pytest.raises(MfpoError, match=r"1 of 2 answers have a different label from their question \(2\)"):
        existence(given, asked)


def test_failed_questions_are_counted_as_missing():
    answers = [answer("1", "Yes"), Answer("2", None, None, "", failed=True)]
    with pytest.raises(MfpoError, match="--retry-failed"):
        existence(answers, asked({"1": "yes", "2": "yes"}))
    result = existence(answers, asked({"1": "yes", "2": "yes"}), allow_missing=True)
    assert (result["accuracy"], result.facts["questions"], result.facts["missing"]) == (100, 1, 1)
    assert json.loads(json.dumps(result.json()))["intervals"]["recall"]["value"] == 100


ASKED = [
    YesNoQuestion("7", "1.jpg", "A dog?", "yes"),
    YesNoQuestion("8", "1.jpg", "A cat?", "no"),
    YesNoQuestion("9", "2.jpg", "A dog?", "no"),
]
OWN = [
    {"question": "A dog?", "answer": "Yes"},
    {"question": "A cat?", "answer": "no"},
    {"question": "A dog?", "answer": "Yes"},
]


@pytest.mark.parametrize("image", [{}, {"image": "1.jpg"}])
def test_popes_own_answers_go_by_their_place(tmp_path, image):
    path = write(tmp_path / "a.json", [OWN[0] | image, *OWN[1:]])
    answers = read_existence_answers(path, ASKED)
    assert [(one.question_id, one.text) for one in answers] == [("7", "Yes"), ("8", "no"), ("9", "Yes")]
    assert existence(answers, ASKED)["accuracy"] == pytest.approx(200 / 3)
    (tmp_path / "list.json").write_text(json.dumps(OWN))
    assert [one.question_id for one in read_existence_answers(tmp_path / "list.json", ASKED)] == ["7", "8", "9"]


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([OWN[1], OWN[0], OWN[2]], "answer 1, 2 does not match the question at its position"),
        (OWN[:2], "there are 2 answers to 3 questions"),
        ([*OWN, OWN[0]], "there are 4 answers to 3 questions"),
        ([{"image": "1.jpg", "answer": "yes"}] * 3, "answer 1, 2, 3 does not match the question"),
        ([*OWN[:2], OWN[2] | {"image": "3.jpg"}], "answer 3 does not match the question"),
    ],
)
def test_answers_without_ids_must_be_in_the_questions_order(tmp_path, rows, fault):
    with pytest.raises(
        MfpoError, match=rf"a\.json: answers without question_id are matched by position, but {fault}"
    ) as caught:
        read_existence_answers(write(tmp_path / "a.json", rows), ASKED)
    assert "\n" not in str(caught.value)


def test_answers_with_and_without_ids(tmp_path):
    path = write(tmp_path / "a.jsonl", [OWN[0] | {"question_id": 7}, *OWN[1:]])
    with pytest.raises(MfpoError, match="2 of 3 answers have no question_id"):
        existence(read_existence_answers(path, ASKED), ASKED)


def test_thoughts_are_counted_where_there_are_any(tmp_path):
    rows = [{"question_id": 7, "text": "<think>No dog, no.</think>Yes"}, {"question_id": 8, "text": "No"}]
    path = write(tmp_path / "a.jsonl", [*rows, {"question_id": 9, "text": "<think>Yes, yes"}])
    figures = existence(read_existence_answers(path, ASKED), ASKED).json()
    assert (figures["accuracy"], figures["unreadable"], figures["thinking"]) == (pytest.approx(200 / 3), 1, 2)
    path = write(tmp_path / "b.jsonl", [{"question_id": 7, "text": "Yes"}, *rows[1:], {"question_id": 9, "text": "No"}])
    assert "thinking" not in existence(read_existence_answers(path, ASKED), ASKED).json()
