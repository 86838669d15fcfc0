"""LLaVA-Bench (COCO): reading scores, relative scores in one order and in both, and bad files."""

import json
import random
import re
import shutil

import pytest

from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer
from mfpo.evaluate.llava_bench import (
    CATEGORIES,
    SYSTEM,
    llava_bench,
    load_llava_bench,
    read_scores,
    read_scores_tolerantly,
)

FILES = ("qa90_questions.jsonl", "qa90_gpt4_answer.jsonl", "caps_boxes_coco2014_val_80.jsonl", "rule.json")


@pytest.fixture(scope="module")
def folder(reference_data):
    return reference_data / "llava_bench"


@pytest.fixture(scope="module")
def benchmark(folder):
    return load_llava_bench(folder)


def answers_to(benchmark, text="mine {}"):
    return [Answer(name, None, None, text.format(name)) for name in benchmark.questions]


def two_answers(prompt):
    return re.findall(r"\[Assistant \d\]\n(.*?)\n\n\[End of Assistant \d\]", prompt, re.DOTALL)


def scores(benchmark, judge, answers, **options):
    return llava_bench(answers, benchmark, judge=judge, **options).json()


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("8 9", (8, 9)),
        ("8 9\nAssistant 2 is better: 3 4", (8, 9)),
        ("7.5, 10\n", (7.5, 10)),
        ("8,9", (8, 9)),
        ("0 1", (0, 1)),
        ("\n8 9", (8, 9)),
        ("8 9 ", (8, 9)),
    ],
)
def test_two_scores_on_the_first_line(reply, read):
    assert read_scores(reply) == read


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "8",
        "8 9 10",
        "Scores: 8 9",
        "Assistant 1: 8\nAssistant 2: 9",
        "I refuse.\n8 9",
        "-1 -1",
        "80 90",
        "nan 5",
        "8/9",
    ],
)
def test_no_two_scores(reply):
    assert read_scores(reply) is None


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("8 9", (8, 9)),
        ("**8** **9**", (8, 9)),
        ("`8 9`", (8, 9)),
        ("8/10, 9.5/10\nBoth are good.", (8, 9.5)),
        ("8 out of 10, 9 out of 10", (8, 9)),
        ("Scores: 8 9", (8, 9)),
        ("**Scores:** 8, 9", (8, 9)),
        ("Assistant 1: 8\nAssistant 2: 9\n\nAssistant 1 is", (8, 9)),
        ("**Assistant 1:** 8/10, **Assistant 2:** 9/10", (8, 9)),
        ("8\n9", (8, 9)),
        ("Assistant 2: 8, Assistant 1: 9", None),
        ("8 9 10", None),
        ("8/9", None),
        ("8-9", None),
        ("80 90", None),
        ("8/100 9/100", None),
        ("I refuse.\n8 9", None),
        ("8 9 points each", None),
        ("8 9\n1. The first", (8, 9)),
        ("1. 8\n2. 7", (8, 7)),
        ("1) 8\n2) 7\nBoth", (8, 7)),
        ("**1.** 8/10\n**2.** 7/10", (8, 7)),
        ("1. Assistant 1: 8\n2. Assistant 2: 7", (8, 7)),
        ("1. 8\nThe other is better.", None),
        ("1.8 2.7", (1.8, 2.7)),
        ("1 8", (1, 8)),
        ("8. 7.", (8, 7)),
        ("Assistant 1: 8 7", None),
        ("Assistant 18 7", None),
        ("[8, 7]", (8, 7)),
        ("(8, 7)", (8, 7)),
        ("8|7", (8, 7)),
        ("8 vs 7", (8, 7)),
        ("8 vs. 7", (8, 7)),
        ("8 and 7\nThe first", (8, 7)),
        ("- Assistant 1: 8\n- Assistant 2: 7", (8, 7)),
        ("Assistant 1 - 8\nAssistant 2 - 7", (8, 7)),
        ("Assistant 1: 8 points\nAssistant 2: 7 points", (8, 7)),
        ("Score 1: 8, Score 2: 7", (8, 7)),
        ("Scores (out of 10): 8 7", (8, 7)),
        ("\\boxed{8} \\boxed{7}", (8, 7)),
    ],
)
def test_scores_by_the_tolerant_rule(reply, read):
    assert read_scores_tolerantly(reply) == read


def test_the_tolerant_figures_stand_beside_the_official_ones(benchmark, stub_judge):
    judge = stub_judge(lambda prompt: "<think>9 9</think>**8** **6**" if "mine 3" in prompt else "8 4", attempts=1)
    answers = answers_to(benchmark)
    figures = scores(benchmark, judge, answers[:2], official=True, allow_missing=True)
    assert (figures["overall"]["value"], "tolerant" in figures, "thinking" in figures["judge"]) == (50, False, False)
    figures = scores(benchmark, judge, answers[2:4], official=True, allow_missing=True)
    assert (figures["overall"]["value"], figures["overall"]["n"], figures["unreadable_questions"]) == (50, 1, ["3"])
    assert figures["tolerant"]["overall"]["value"] == pytest.approx(100 * (4 + 6) / (8 + 8))
    assert (figures["tolerant"]["unreadable"], figures["judge"]["thinking"]) == (0, 1)


def test_a_list_number_is_a_score_only_officially(benchmark, stub_judge):
    replies = {"mine 0": "1. 8\n2. 4", "mine 1": "1. 8"}
    judge = stub_judge(lambda prompt: next((said for mine, said in replies.items() if mine in prompt), "8 4"))
    figures = scores(benchmark, judge, answers_to(benchmark)[:3], official=True, allow_missing=True)
    assert (figures["overall"]["value"], figures["unreadable"]) == (pytest.approx(100 * (8 + 8 + 4) / (1 + 1 + 8)), 0)
    assert (figures["tolerant"]["overall"]["value"], figures["tolerant"]["unreadable"]) == (50, 1)


def test_the_tolerant_rule_reads_as_the_official_one_what_is_no_list():
    draw = random.Random(0)
    numbers = ["8", "8.0", "10", "8.", ".5", "1", "1.5", "2", "+8", "1e0"]
    for _ in range(500):
        reply = draw.choice(["", "\n", " "]) + draw.choice(numbers) + draw.choice([" ", ",", ", ", " , ", "\t"])
        reply += draw.choice(numbers) + draw.choice(["", "\n", " \n\n1. Good", "\n2. 7", ", \nWell"])
        if not re.match(r"\s*[12]\.\s", reply):
            assert read_scores_tolerantly(reply) == read_scores(reply) is not None, reply


def test_what_the_judge_is_asked(benchmark, stub_judge):
    judge = stub_judge(lambda prompt: "8 9", concurrency=1)
    question = benchmark.questions["0"]
    llava_bench([Answer("0", None, None, "Red.")], benchmark, judge=judge, allow_missing=True)
    one, other = judge.server.bodies
    assert (one["temperature"], one["max_tokens"]) == (0.2, 180)
    assert one["messages"][0] == {"role": "system", "content": SYSTEM}
    text = one["messages"][1]["content"]
    assert text.startswith("[Context]\n")
    assert "\n\n[Question]\nWhat is the color of the two suitcases in the image?\n\n[Assistant 1]\n" in text
    assert text.endswith(f"[End of Assistant 2]\n\n[System]\n{benchmark.rules['conv'].prompt}\n\n")
    assert two_answers(text) == [question.reference, "Red."]
    assert two_answers(other["messages"][1]["content"]) == ["Red.", question.reference]


def test_captions_and_boxes_are_in_the_context(benchmark, folder):
    rows = [json.loads(line) for line in (folder / FILES[2]).read_text().splitlines()]
    row = next(row for row in rows if row["image"] == benchmark.questions["0"].image)
    first = row["instances"][0]
    context = benchmark.questions["0"].context
    assert context.startswith("\n".join(row["captions"]) + "\n\n" + f"{first['category']}: {first['bbox']}")
    assert context.count("\n") == len(row["captions"]) + len(row["instances"])


def test_both_orders_against_plain_sums(benchmark, stub_judge):
    """A judge that gives the answer in first place 1 more: swapped, the bias goes; in one order it stays."""
    draw = random.Random(0)
    true = {name: (draw.randint(1, 8), draw.randint(4, 8)) for name in benchmark.questions}
    by_reference = {question.reference: name for name, question in benchmark.questions.items()}

    def biased(prompt):
        values = []
        for text in two_answers(prompt):
            mine = text.startswith("mine ")
            values.append(true[text[5:]][0] if mine else true[by_reference[text]][1])
        return f"{values[0] + 1} {values[1]}\nwhy"

    judge = stub_judge(biased)
    both = scores(benchmark, judge, answers_to(benchmark))
    one = scores(benchmark, judge, answers_to(benchmark), official=True)
    for group in ("overall", *CATEGORIES):
        pairs = [true[n] for n, question in benchmark.questions.items() if group in ("overall", question.category)]
        count, model, reference = len(pairs), sum(m for m, _ in pairs), sum(r for _, r in pairs)
        assert count == (90 if group == "overall" else 30)
        assert both[group]["value"] == pytest.approx(100 * (model + count / 2) / (reference + count / 2))
        assert one[group]["value"] == pytest.approx(100 * model / (reference + count))
        assert (one[group]["model"], one[group]["n"]) == (pytest.approx(model / count), count)
        assert one[group]["low"] < one[group]["value"] < one[group]["high"]
    assert (both["official_order"], one["official_order"]) == (False, True)
    # The single order was asked before, as one half of both.
    assert judge.report()["asked"] == 180
    assert json.loads(json.dumps(both)) == both


def test_a_perfect_file_scores_100_and_an_empty_one_the_floor(benchmark, stub_judge):
    judge = stub_judge(lambda prompt: " ".join("10" if text.strip() else "1" for text in two_answers(prompt)))
    perfect = scores(benchmark, judge, [Answer(n, None, None, q.reference) for n, q in benchmark.questions.items()])
    empty = scores(benchmark, judge, answers_to(benchmark, ""))
    assert [perfect[group]["value"] for group in ("overall", *CATEGORIES)] == [100] * 4
    assert [empty[group]["value"] for group in ("overall", *CATEGORIES)] == [10] * 4
    assert (perfect["empty"], empty["empty"]) == (0, 90)


def test_questions_that_stay_unreadable_in_one_order_are_left_out_and_named(benchmark, stub_judge):
    judge = stub_judge(lambda prompt: "I refuse." if two_answers(prompt)[0] == "mine 3" else "4 4")
    figures = scores(benchmark, judge, answers_to(benchmark))
    assert (figures["unreadable"], figures["unreadable_questions"]) == (1, ["3"])
    assert (figures["overall"]["n"], figures["overall"]["value"]) == (89, 100)
    assert figures["judge"]["asked_again"] == 2
    assert figures["details"][3]["model"] is None
    assert figures["details"][3]["replies"] == ["4 4", "I refuse."]


def test_a_question_that_the_judge_refuses_is_unreadable(benchmark, stub_judge):
    judge = stub_judge(lambda prompt: "4 4")
    server, well = judge.server, judge.server.well
    server.well = lambda request, body: (server.bad_request if "mine 33" in str(body) else well)(request, body)
    figures = scores(benchmark, judge, answers_to(benchmark))
    assert figures["unreadable_questions"] == ["33"]
    assert figures["details"][33]["replies"] == []


def test_a_judge_that_never_scores_is_an_error(benchmark, stub_judge):
    judge = stub_judge(lambda prompt: "Both are nice.", attempts=1)
    with pytest.raises(MfpoError, match=r"none of the 90 verdicts of judge-1 can be read \('Both are nice\.'\)"):
        scores(benchmark, judge, answers_to(benchmark))


def test_the_official_prompt_needs_the_official_system_message(benchmark, stub_judge):
    assert not scores(benchmark, stub_judge(lambda prompt: "1 2"), answers_to(benchmark))["official_prompt"]


def test_missing_unknown_and_double_answers(benchmark, stub_judge):
    judge = stub_judge(lambda prompt: "4 4")
    answers = answers_to(benchmark)
    with pytest.raises(MfpoError, match=r"1 not in the questions \(90\); 1 answered more than once \(5\)"):
        llava_bench([*answers, Answer("90", None, None, "x"), answers[5]], benchmark, judge=judge)
    with pytest.raises(MfpoError, match="80 without an answer"):
        llava_bench(answers[:10], benchmark, judge=judge)
    assert judge.server.bodies == []
    figures = scores(benchmark, judge, answers[:10], allow_missing=True)
    assert (figures["missing"], figures["overall"]["n"]) == (80, 10)


@pytest.mark.parametrize(
    "other", [Answer("0", "AMBER_1.jpg", None, "x"), Answer("0", None, "Describe this image.", "x")]
)
def test_answers_to_another_benchmark(benchmark, stub_judge, other):
    with pytest.raises(MfpoError, match=r"1 of 90 answers have a different image or prompt .* LLaVA-Bench"):
        llava_bench([other, *answers_to(benchmark)[1:]], benchmark, judge=stub_judge(lambda prompt: "4 4"))


def test_an_answer_with_its_own_image_and_prompt(benchmark, stub_judge):
    question = benchmark.questions["0"]
    answer = Answer("0", f"COCO_val2014_{question.image}", f"<image>\n{question.text}", "x")
    llava_bench([answer], benchmark, judge=stub_judge(lambda prompt: "4 4"), allow_missing=True)


def test_all_questions_of_the_files_are_used(benchmark, folder):
    rows = [json.loads(line) for line in (folder / FILES[0]).read_text().splitlines()]
    references = [json.loads(line)["text"] for line in (folder / FILES[1]).read_text().splitlines()]
    assert [(q.image, q.category, q.text, q.reference) for q in benchmark.questions.values()] == [
        (row["image"], row["category"], row["text"], text) for row, text in zip(rows, references, strict=True)
    ]


@pytest.mark.parametrize("name", FILES)
def test_a_folder_that_lacks_a_file(folder, tmp_path, name):
    for other in FILES:
        if other != name:
            shutil.copyfile(folder / other, tmp_path / other)
    with pytest.raises(MfpoError, match=re.escape(name[:10])):
        load_llava_bench(tmp_path)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (FILES[0], '"category": "conv"', '"category": "vqa"'),
        (FILES[0], '"question_id": 0,', '"question_id": 900,'),
        (FILES[1], '"text"', '"answer"'),
        (FILES[2], '"instances"', '"boxes"'),
        (FILES[3], '"complex"', '"hard"'),
    ],
)
def test_files_that_do_not_go_together(folder, tmp_path, name, old, new):
    for other in FILES:
        shutil.copyfile(folder / other, tmp_path / other)
    path = tmp_path / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(MfpoError, match=re.escape(str(tmp_path))):
        load_llava_bench(tmp_path)
