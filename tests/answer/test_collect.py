"""Killed, resumed and repeated: every question has one line, in the order of the questions."""

import json

import pytest

from mfpo.answer.collect import Engine, check_out
from mfpo.answer.collect import collect as collect_answers
from mfpo.errors import MfpoError

QUESTIONS = [
    {"question_id": str(number), "image": f"{number}.png", "text": f"What is {number}?"} for number in range(5)
]
TEXTS = ["Red.", "A\u2028wall\nand 🐈.", "", '"Quoted"', "Zürich"]
MADE_BY = {"model": "tiny", "decode": {"strategy": "greedy"}}


def collect(questions, ask, out, made_by, **options):
    """How many answers there are, and how many of them are errors."""
    answers = collect_answers(questions, Engine(made_by, ask), out, **options)
    assert answers == rows_of(out)
    return len(answers), sum("error" in answer for answer in answers)


class Asker:
    """Answers in reverse order, but those in `broken`, and notes who was asked."""

    def __init__(self, broken=()):
        self.broken, self.asked = set(broken), []

    def __call__(self, questions):
        for question in reversed(questions):
            name = question["question_id"]
            self.asked.append(name)
            yield question, {"text": None, "error": "oops"} if name in self.broken else {"text": TEXTS[int(name)]}


def rows_of(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_lines_have_the_keys_and_the_order_of_the_questions(tmp_path):
    questions = [QUESTIONS[0] | {"label": "yes"}, *QUESTIONS[1:]]
    assert collect(questions, Asker(), tmp_path / "new" / "a.jsonl", MADE_BY) == (5, 0)
    rows = rows_of(tmp_path / "new" / "a.jsonl")
    assert rows[0] == {"question_id": "0", "image": "0.png", "prompt": "What is 0?", "text": "Red."} | MADE_BY | {
        "label": "yes"
    }
    assert [row["text"] for row in rows] == TEXTS
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.jsonl"]


def test_a_file_with_failed_questions_says_how_to_ask_them_again(tmp_path):
    collect(QUESTIONS, Asker(broken="13"), tmp_path / "a.jsonl", MADE_BY)
    with pytest.raises(MfpoError, match=r"a\.jsonl: 2 questions failed; --retry-failed asks them again"):
        check_out(tmp_path / "a.jsonl")


def test_without_a_file_the_answers_come_back_in_the_order_of_the_questions(tmp_path):
    answers = collect_answers(QUESTIONS, Engine(MADE_BY, Asker(broken="1")))
    assert [answer["text"] for answer in answers] == [TEXTS[0], None, *TEXTS[2:]]
    assert answers[1]["error"] == "oops"


def test_a_run_killed_at_any_byte_ends_with_the_same_file(tmp_path):
    collect(QUESTIONS, Asker(), tmp_path / "whole.jsonl", MADE_BY)
    whole = (tmp_path / "whole.jsonl").read_bytes()

    def killed(questions):
        yield from Asker()(questions)
        raise KeyboardInterrupt

    out, partial = tmp_path / "a.jsonl", tmp_path / "a.jsonl.partial"
    with pytest.raises(KeyboardInterrupt):
        collect(QUESTIONS, killed, out, MADE_BY)
    written, note = partial.read_bytes(), (tmp_path / "a.jsonl.made_by.json").read_bytes()
    for cut in range(len(written) + 1):
        partial.write_bytes(written[:cut])
        (tmp_path / "a.jsonl.made_by.json").write_bytes(note)
        ask = Asker()
        collect(QUESTIONS, ask, out, MADE_BY)
        assert out.read_bytes() == whole
        assert len(ask.asked) == 5 - written[:cut].count(b"\n")
        out.unlink()


@pytest.mark.parametrize(
    ("questions", "made_by"),
    [
        (QUESTIONS[:4], MADE_BY),
        (QUESTIONS, MADE_BY | {"model": "other"}),
        (QUESTIONS, MADE_BY | {"decode": {"strategy": "sample"}}),
        (QUESTIONS, MADE_BY | {"fingerprint": "1"}),
    ],
)
def test_what_a_killed_run_of_another_kind_wrote_is_not_taken(tmp_path, questions, made_by):
    def killed(rows):
        yield from Asker()(rows[:3])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(QUESTIONS, killed, tmp_path / "a.jsonl", MADE_BY)
    ask = Asker()
    collect(questions, ask, tmp_path / "a.jsonl", made_by)
    assert sorted(ask.asked) == [question["question_id"] for question in questions]


def test_a_failed_question_is_kept_and_only_it_is_asked_again(tmp_path):
    out = tmp_path / "a.jsonl"
    assert collect(QUESTIONS, Asker({"1", "3"}), out, MADE_BY) == (5, 2)
    assert [row["question_id"] for row in rows_of(out) if row["text"] is None and row["error"] == "oops"] == ["1", "3"]
    again = Asker({"3"})
    assert collect(QUESTIONS, again, out, MADE_BY, retry_failed=True) == (5, 1)
    assert again.asked == ["3", "1"]
    last = Asker()
    assert collect(QUESTIONS, last, out, MADE_BY, retry_failed=True) == (5, 0)
    assert last.asked == ["3"]
    assert [(row["text"], "error" in row) for row in rows_of(out)] == [(text, False) for text in TEXTS]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_asking_again_can_be_killed_too(tmp_path):
    out = tmp_path / "a.jsonl"
    collect(QUESTIONS, Asker({"1", "3"}), out, MADE_BY)

    def killed(rows):
        yield from Asker()(rows[1:])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(QUESTIONS, killed, out, MADE_BY, retry_failed=True)
    assert len(rows_of(out)) == 5
    again = Asker()
    assert collect(QUESTIONS, again, out, MADE_BY, retry_failed=True) == (5, 0)
    assert again.asked == ["1"]


@pytest.mark.parametrize(
    ("questions", "made_by"),
    [
        ([QUESTIONS[0] | {"text": "Why?"}, *QUESTIONS[1:]], MADE_BY),
        (QUESTIONS[1:], MADE_BY),
        (QUESTIONS, MADE_BY | {"model": "other"}),
        (QUESTIONS, MADE_BY | {"decode": {"strategy": "greedy", "max_new_tokens": 9}}),
    ],
)
def test_other_answers_are_not_mixed_with_those_asked_again(tmp_path, questions, made_by):
    out = tmp_path / "a.jsonl"
    collect(QUESTIONS, Asker({"1"}), out, MADE_BY)
    before = out.read_bytes()
    with pytest.raises(MfpoError, match="line 1: is not an answer to one of these questions"):
        collect(questions, Asker(), out, made_by, retry_failed=True)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_two_runs_do_not_write_one_file(tmp_path):
    second = Asker()

    def first(questions):
        for question, reply in Asker()(questions):
            with pytest.raises(MfpoError, match=r"a\.jsonl: another run is writing it"):
                collect(QUESTIONS, second, tmp_path / "a.jsonl", MADE_BY)
            yield question, reply

    assert collect(QUESTIONS, first, tmp_path / "a.jsonl", MADE_BY) == (5, 0)
    assert not second.asked
    assert [row["text"] for row in rows_of(tmp_path / "a.jsonl")] == TEXTS
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_finished_file_is_not_overwritten_and_an_absent_one_not_repaired(tmp_path):
    with pytest.raises(MfpoError, match="does not exist"):
        check_out(tmp_path / "a.jsonl", retry_failed=True)
    collect(QUESTIONS, Asker(), tmp_path / "a.jsonl", MADE_BY)
    with pytest.raises(MfpoError, match="exists already"):
        check_out(tmp_path / "a.jsonl")


def test_a_file_that_another_run_has_finished_meanwhile_is_kept(tmp_path):
    """It is checked before the model is loaded, which takes long, and again when the file is locked."""
    out = tmp_path / "a.jsonl"
    check_out(out)
    collect(QUESTIONS, Asker(broken="1"), out, MADE_BY)
    before = out.read_bytes()
    for text in ("1 questions failed", "exists already"):
        late = Asker()
        with pytest.raises(MfpoError, match=text):
            collect(QUESTIONS, late, out, MADE_BY)
        assert (late.asked, out.read_bytes()) == ([], before)
        assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
        collect(QUESTIONS, Asker(), out, MADE_BY, retry_failed=True)
        before = out.read_bytes()
