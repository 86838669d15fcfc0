"""MMHal-Bench: reading ratings, the figures against the official script's steps, and bad files."""

import json
import random
import re

import pytest

from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer
from mfpo.evaluate.mmhal import TYPES, load_mmhal, mmhal, read_mmhal_answers, read_rating


@pytest.fixture(scope="module")
def path(reference_data):
    return reference_data / "mmhal" / "mmhal-bench_answer_template.json"


@pytest.fixture(scope="module")
def questions(path):
    return load_mmhal(path)


def answers_to(questions, text="A fine answer."):
    return [Answer(question.number, None, None, text) for question in questions]


def official_figures(replies):
    """The official script's steps over the replies to the 96 questions, in order."""
    scores = []
    for reply in replies:
        found = [rating for rating in range(7) if f"rating: {rating}" in reply.lower()]
        scores.append(found[0] if len(found) == 1 else 0)
    by_type = {kind: sum(scores[place::8]) / 12 for place, kind in enumerate(TYPES)}
    informative = [score - 3 if score >= 3 else score for score in scores]
    return sum(scores) / 96, sum(score < 3 for score in scores) / 96, by_type, sum(informative) / 96 / 3 * 100


@pytest.mark.parametrize(
    ("reply", "official", "tolerant"),
    [
        ("It is right. Rating: 5", 5, 5),
        ("rating: 0, not informative", 0, 0),
        ("RATING: 6", 6, 6),
        ("Rating: 4/6", 4, 4),
        ("Rating: 4. Rating: 4", 4, 4),
        ("Rating: **4**", None, 4),
        ("**Rating:** 2", None, 2),
        ("Rating - 3", None, 3),
        ("Rating:5", None, 5),
        ("The rating is 1.", None, 1),
        ("Not a Rating: 6, so Rating: 2", None, 2),
        ("Rating (0-6): 4", None, 4),
        ("**Rating (0 to 6):** 4", None, 4),
        ("**Rating:** **4**", None, 4),
        ("Rating: \\boxed{4}", None, 4),
        ("Rating: $\\boxed{\\text{4}}$", None, 4),
        ("\\boxed{Rating: 4}", 4, 4),
        ("## Rating\n\n**4**", None, 4),
        ("_Rating_: 4", None, 4),
        ("| Rating | 4 |", None, 4),
        ('{"rating": 4}', None, 4),
        ("Rating [out of 6]: 4 out of 6", None, 4),
        ("Rating: 4.0", 4, 4),
        ("Overall rating is **4**", None, 4),
        ("Rating: 4\n\nExplanation: it is no rating of 2, as nothing is wrong.", 4, 4),
        ("A rating of 2 would be too low. Rating: 4", 4, 4),
        ("Rating: 4\n\nWhy not Rating: 5? It says little.", None, 4),
        ("My rating: 4\n\nThe rating is 2 where all is wrong.", 4, 4),
        ("Rating: 4/10", 4, None),
        ("Rating: 4 out of 10", 4, None),
        ("Rating: 4.05", 4, None),
        ("Rating: 3.5", 3, None),
        ("Rating: 3-4", 3, None),
        ("Rating: 3 to 4", 3, None),
        ("Rating: 3,5", 3, None),
        ("Rating: 4\n- 5 dogs are named", 4, 4),
        ("Rating: 4\n\n- 2 of the objects are right", 4, 4),
        ("Rating: 4\nTo 5 it lacks detail.", 4, 4),
        ("Rating: 4\nof 5 dogs, all are named", 4, 4),
        ("It deserves a rating of 4, not a rating of 2.", None, 4),
        ("It deserves a rating of 4, and no rating of 2.", None, 4),
        ("Rating: 4 of 10", 4, None),
        ("Rating: 4 of 6", 4, 4),
        ("Rating: 4 (out of 10)", 4, None),
        ("Rating: 4 out of ten", 4, None),
        ("Rating: 4 stars out of 5", 4, None),
        ("Rating: 4 stars out of 6", 4, 4),
        ("Rating: 4 on a scale of 1 to 10", 4, None),
        ("Rating: 4 on a scale from 0 to 6", 4, 4),
        ("Rating: 4 because of 2 errors", 4, 4),
        ("__Rating:__ 5", None, 5),
        ("*Rating:* _5_", None, 5),
        ('{"final_rating": 5}', None, 5),
        ("The rating should be 5", None, 5),
        ("Rating on a scale of 0 to 6: 5", None, 5),
        ("Rating (on a scale from 0-6): **5**", None, 5),
        ("A rating of 6: 2 dogs are there.", None, 6),
    ],
)
def test_ratings(reply, official, tolerant):
    assert read_rating(reply) == (official, tolerant)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "4",
        "I cannot rate it",
        "My rating (0-6)",
        "Rating (0-6): 3.5",
        "Rating: 7",
        "Rating: -1",
        "no rating. 2 dogs",
        "Rating: **4**/10",
        "This is not a rating of 2.",
        "I give a rating of 4 rather than a rating of 2.",
    ],
)
def test_no_rating(reply):
    assert read_rating(reply) is None


def test_operating_4_is_a_rating_only_officially():
    assert read_rating("operating: 4 men") == (4, None)


def test_rating_10_is_1_only_officially():
    assert read_rating("Rating: 10") == (1, None)


def test_figures_equal_the_official_scripts(questions, stub_judge):
    draw = random.Random(0)
    forms = ["Good. Rating: {}", "rating: {}, somewhat", "**Rating:** {}", "Rating: {}, no, rating: 0", "{}", "x"]
    replies = [draw.choice(forms).format(draw.randrange(7)) for _ in questions]
    judge = stub_judge(lambda prompt: replies[int(re.search(r"answer (\d+)\.", prompt).group(1))])
    answers = [Answer(q.number, None, None, f"answer {q.number}.") for q in questions]
    draw.shuffle(answers)
    figures = mmhal(answers, questions, judge=judge).json()
    score, rate, by_type, informativeness = official_figures(replies)
    assert figures["score"]["value"] == pytest.approx(score)
    assert figures["hallucination_rate"]["value"] == pytest.approx(100 * rate)
    assert figures["informativeness"]["value"] == pytest.approx(informativeness)
    assert {kind: figure["score"]["value"] for kind, figure in figures["by_type"].items()} == pytest.approx(by_type)
    assert {figure["score"]["n"] for figure in figures["by_type"].values()} == {12}
    assert figures["score"]["low"] < score < figures["score"]["high"]
    assert figures["unreadable"] == sum(not read_rating(r) or read_rating(r).official is None for r in replies) > 0
    assert figures["without_unreadable"]["score"]["n"] == 96 - figures["unreadable"]
    assert figures["without_unreadable"]["score"]["value"] == pytest.approx(96 * score / (96 - figures["unreadable"]))
    assert json.loads(json.dumps(figures)) == figures


def test_a_perfect_file_scores_6_and_an_empty_one_0(questions, stub_judge):
    judge = stub_judge(lambda prompt: "Rating: 6" if "A fine answer." in prompt else "Rating: 0")
    perfect = mmhal(answers_to(questions), questions, judge=judge).json()
    empty = mmhal(answers_to(questions, ""), questions, judge=judge).json()
    assert perfect["score"] == {"value": 6.0, "low": 6.0, "high": 6.0, "n": 96}
    assert perfect["hallucination_rate"]["value"] == 0
    assert (empty["score"]["value"], empty["hallucination_rate"]["value"], empty["empty"]) == (0, 100, 96)
    assert list(perfect["by_type"]) == list(TYPES)


def test_the_judge_is_told_what_the_official_prompt_tells(questions, stub_judge):
    judge = stub_judge(lambda prompt: "Rating: 3")
    mmhal([Answer("2", None, None, "Assistant: The {left} one.")], questions, judge=judge, allow_missing=True)
    (body,) = judge.server.bodies
    (message,) = body["messages"]
    assert (message["role"], body["temperature"], body["max_tokens"]) == ("user", 0.0, 512)
    told = [
        "Vase, Houseplant, Stool, Coffee table, Flower",
        "Which wooden stool has a vase with red flower on it?",
        "The left wooden stool has a vase with a red flower on it.",
        "The {left} one.",
    ]
    places = [message["content"].index(part) for part in told]
    assert places == sorted(places)
    assert "Assistant:" not in message["content"]


def test_a_verdict_that_only_the_tolerant_rule_reads_is_not_asked_for_again(questions, stub_judge):
    judge = stub_judge(lambda prompt: "Rating: **4**")
    figures = mmhal(answers_to(questions), questions, judge=judge).json()
    assert figures["judge"]["asked"] == 96
    assert (figures["score"]["value"], figures["unreadable"], figures["without_unreadable"]) == (0, 96, {})
    assert (figures["tolerant"]["score"]["value"], figures["tolerant"]["unreadable"]) == (4, 0)


def test_unreadable_verdicts_are_asked_again_counted_and_named(questions, stub_judge):
    judge = stub_judge(lambda prompt: "I refuse." if "bad" in prompt else "Rating: 5")
    answers = answers_to(questions)
    answers[7] = Answer("7", None, None, "bad")
    figures = mmhal(answers, questions, judge=judge).json()
    assert (figures["unreadable"], figures["unreadable_questions"]) == (1, ["7"])
    assert figures["score"]["value"] == pytest.approx(5 * 95 / 96)
    assert figures["without_unreadable"]["score"]["value"] == 5
    assert (figures["judge"]["asked"], figures["judge"]["asked_again"]) == (98, 2)
    assert figures["details"][7] == {
        "question_id": "7", "type": "other", "rating": None, "tolerant": None, "reply": "I refuse."
    }  # fmt: skip


def test_missing_answers(questions, stub_judge):
    judge = stub_judge(lambda prompt: "Rating: 5")
    with pytest.raises(MfpoError, match=r"95 without an answer \(1, 2, 3 and 92 more\).*allow_missing=true"):
        mmhal(answers_to(questions)[:1], questions, judge=judge)
    assert judge.server.bodies == []
    figures = mmhal(answers_to(questions)[:1], questions, judge=judge, allow_missing=True).json()
    assert (figures["missing"], figures["answers"], figures["score"]["n"]) == (95, 1, 1)
    assert list(figures["by_type"]) == ["attribute"]


def test_unknown_and_double_answers(questions, stub_judge):
    answers = [*answers_to(questions), Answer("96", None, None, "x"), Answer("3", None, None, "x")]
    with pytest.raises(MfpoError, match=r"1 not in the questions \(96\); 1 answered more than once \(3\)"):
        mmhal(answers, questions, judge=stub_judge(lambda prompt: "Rating: 5"))


@pytest.mark.parametrize(
    "other", [Answer("0", "AMBER_1.jpg", None, "x"), Answer("0", None, "Describe this image.", "x")]
)
def test_answers_to_another_benchmark(questions, stub_judge, other):
    with pytest.raises(MfpoError, match=r"1 of 96 answers have a different image or prompt .* MMHal-Bench"):
        mmhal([other, *answers_to(questions)[1:]], questions, judge=stub_judge(lambda prompt: "Rating: 5"))


def test_another_prompt_is_not_the_official_one(questions, stub_judge, tmp_path):
    judge = stub_judge(lambda prompt: "Rating: 5")
    assert not mmhal(answers_to(questions), questions, judge=judge).facts["official_prompt"]
    template = tmp_path / "prompt.txt"
    template.write_text("{question}{answer}{human_answer}{image_contents}")
    assert not mmhal(answers_to(questions), questions, judge=judge, template=template).facts["official_prompt"]


def test_answers_by_number_image_place_and_in_the_file_itself(questions, path, tmp_path):
    rows = json.loads(path.read_text())
    filled = [row | {"model_answer": f"a{i}"} for i, row in enumerate(rows)]
    files = {
        "number.jsonl": [{"question_id": i, "text": f"a{i}"} for i in range(96)],
        "image.jsonl": [{"image_id": row["image_id"] + ".jpg", "text": f"a{i}"} for i, row in enumerate(rows)],
        "both.jsonl": [
            {"question_id": f"x{i}", "image_id": r["image_id"], "text": f"a{i}"} for i, r in enumerate(rows)
        ],
        "place.jsonl": [{"prompt": row["question"], "text": f"a{i}"} for i, row in enumerate(rows)],
        "filled.jsonl": filled,
    }
    for name, content in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    (tmp_path / "filled.json").write_text(json.dumps(filled))
    for name in [*files, "filled.json"]:
        answers = read_mmhal_answers(tmp_path / name, questions)
        assert [(answer.question_id, answer.text) for answer in answers] == [(str(i), f"a{i}") for i in range(96)], name


def test_answers_without_ids_must_be_96(questions, tmp_path):
    (tmp_path / "place.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    with pytest.raises(MfpoError, match=r"2 answers without question_id or image_id.*96"):
        read_mmhal_answers(tmp_path / "place.jsonl", questions)


def test_the_order_of_rows_by_place_is_checked_by_their_prompts(questions, path, tmp_path, stub_judge):
    rows = [{"prompt": row["question"], "text": "a"} for row in json.loads(path.read_text())][::-1]
    (tmp_path / "place.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(MfpoError, match=r"\d\d of 96 answers have a different image or prompt"):
        mmhal(tmp_path / "place.jsonl", questions, judge=stub_judge(lambda prompt: "Rating: 5"))


@pytest.mark.parametrize(
    "row", [{"question_id": 1}, {"question_id": 1, "text": None}, {"id": 1, "text": "", "prompt": 3}]
)
def test_a_bad_row_is_named(questions, tmp_path, row):
    (tmp_path / "a.jsonl").write_text('{"question_id": 0, "text": "a"}\n' + json.dumps(row))
    with pytest.raises(MfpoError, match=r"a\.jsonl, line 2: "):
        read_mmhal_answers(tmp_path / "a.jsonl", questions)


def test_all_questions_of_the_file_are_used(questions, path):
    rows = json.loads(path.read_text())
    assert [(q.kind, q.text, q.human_answer, list(q.contents)) for q in questions] == [
        (row["question_type"], row["question"], row["gt_answer"], row["image_content"]) for row in rows
    ]


@pytest.mark.parametrize("change", ["cut", "type", "key", "list", "rows"])
def test_another_file_is_refused(path, tmp_path, change):
    rows = json.loads(path.read_text())
    if change == "type":
        rows[0]["question_type"] = "adversarial"
    if change == "key":
        del rows[5]["gt_answer"]
    other = {"cut": rows[:95], "list": {"a": 1}, "rows": [1, 2]}.get(change, rows)
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(MfpoError, match=r"other\.json: .*give mmhal-bench_answer_template\.json"):
        load_mmhal(tmp_path / "other.json")


def test_tallies_are_by_question(questions, stub_judge):
    judge = stub_judge(lambda prompt: "Rating: 4" if "good" in prompt else "?", attempts=1)
    answers = [Answer("0", None, None, "good"), Answer("1", None, None, "bad")]
    result = mmhal(answers, questions, judge=judge, allow_missing=True)
    assert result.tallies["score"].units == {"0": (4, 1), "1": (0, 1)}
    assert result.tallies["adversarial.hallucination_rate"].units == {"1": (True, 1)}


def test_what_the_judge_thinks_is_no_rating(questions, stub_judge):
    judge = stub_judge(lambda prompt: "Is it Rating: 2?</think>Rating: 4" if "fine" in prompt else "Rating: 1")
    answers = [*answers_to(questions)[:48], *answers_to(questions, "Bad.")[48:]]
    figures = mmhal(answers, questions, judge=judge).json()
    assert (figures["score"]["value"], figures["unreadable"], figures["judge"]["thinking"]) == (2.5, 0, 48)


def test_thoughts_that_are_cut_off_are_no_verdict(questions, stub_judge):
    judge = stub_judge(lambda prompt: "<think>Rating: 2", attempts=2)
    figures = mmhal(answers_to(questions)[:1], questions, judge=judge, allow_missing=True).json()
    assert (figures["unreadable"], figures["judge"]["asked"], figures["tolerant"]["unreadable"]) == (1, 2, 1)


@pytest.mark.parametrize(("key", "value"), [("question", None), ("question_type", []), ("image_content", "Dog")])
def test_a_question_with_another_value_is_refused(path, tmp_path, key, value):
    rows = json.loads(path.read_text())
    rows[5][key] = value
    (tmp_path / "other.json").write_text(json.dumps(rows))
    with pytest.raises(MfpoError, match=rf"other\.json: is not MMHal-Bench .*{key} is "):
        load_mmhal(tmp_path / "other.json")
