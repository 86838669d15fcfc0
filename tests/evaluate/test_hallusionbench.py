"""HallusionBench against a plain reading of its script, its files, and those of other tools."""

import json
import random
import re

import pytest

from mfpo.errors import MfpoError
from mfpo.evaluate.benchmark import score
from mfpo.evaluate.hallusionbench import cause_of, hallusionbench, load_hallusionbench, read_hallusion

SAID = {"1": "Yes, it is.", "0": "No.", "2": "I cannot tell."}


@pytest.fixture(scope="module")
def rows():
    """Pairs of both categories: an original, and edited figures; VS also with the figure as it was."""
    made = []
    draw = random.Random(1)
    for category, subcategory in (("VD", "illusion"), ("VD", "video"), ("VS", "chart"), ("VS", "map")):
        for group in range(12):
            for figure in range(3):
                visual = ("0" if figure == 0 else str(figure)) if category == "VS" else str(min(2, figure + 1))
                made += [
                    {"category": category, "subcategory": subcategory, "visual_input": visual, "set_id": str(group)}
                    | {"figure_id": str(figure), "question_id": str(number), "question": f"Is it {number} of {group}?"}
                    | {"gt_answer_details": "It is.", "gt_answer": draw.choice("01"), "filename": None}
                    for number in range(3)
                ]
    return made


def key(row, *names):
    return "_".join(row[name] for name in ("category", "subcategory", "set_id", *names))


def by_script(rows, verdicts, same):
    """The steps of evaluation.py and utils.py, in percent; `verdicts` and `same` in the rows' order."""
    correct = [
        int(v == 1 or (v == 2 and row["category"] == "VS" and row["figure_id"] == "0"))
        for row, v in zip(rows, verdicts, strict=True)
    ]

    def whole(names, keep):
        groups = {}
        for row, right in zip(rows, correct, strict=True):
            if keep(row):
                groups.setdefault(key(row, *names), []).append(right)
        return list(groups.values())

    def rate(groups):
        return 100 * sum(all(group) for group in groups) / len(groups)

    figures = whole(["figure_id"], lambda row: not (row["category"] == "VS" and row["figure_id"] == "0"))
    original = {key(r, "question_id"): v for r, v in zip(rows, verdicts, strict=True) if r["figure_id"] == "0"}
    lh = vi = both = 0
    for row, now, alike in zip(rows, verdicts, same, strict=True):
        before, cause = original[key(row, "question_id")], (0, 0)
        if row["figure_id"] == "0":
            if row["category"] == "VD":
                cause = (0, 1) if now in (0, 2) else cause
            elif now == 0:
                cause = (1, 0)
        elif row["category"] == "VD":
            if before == 1 and now == 0:
                cause = (1, 1) if alike else (0, 1)
            elif now in (0, 2):
                cause = (0, 1)
        elif before == 0:
            if now == 0:
                cause = (1, 0) if alike else (1, 1)
            elif now == 2:
                cause = (1, 1)
        elif before == 2:
            cause = (0, 1) if now in (0, 2) else cause
        elif now == 2:
            cause = (0, 1)
        elif now == 0:
            cause = (1, 0) if row["visual_input"] == "2" and alike else (0, 1)
        lh, vi, both = lh + (cause == (1, 0)), vi + (cause == (0, 1)), both + (cause == (1, 1))
    labels = [int(row["gt_answer"]) for row in rows]
    wrong = [label for label, right in zip(labels, correct, strict=True) if not right]
    said = [int(right == label) for right, label in zip(correct, labels, strict=True)]
    return {
        "question_accuracy": 100 * sum(correct) / len(correct),
        "pair_accuracy": rate(whole(["question_id"], lambda row: True)),
        "figure_accuracy": rate(figures),
        "easy_accuracy": rate(whole(["question_id"], lambda row: row["visual_input"] != "2")),
        "hard_accuracy": rate(whole(["question_id"], lambda row: row["visual_input"] == "2")),
        "VS.pair_accuracy": rate(whole(["question_id"], lambda row: row["category"] == "VS")),
        "consistency.correct": rate(figures),
        "consistency.wrong": 100 * sum(not any(group) for group in figures) / len(figures),
        "language_hallucination": 100 * lh / (lh + vi + both),
        "visual_illusion": 100 * vi / (lh + vi + both),
        "mixed": 100 * both / (lh + vi + both),
        "yes_bias.difference": sum(said) / len(said) - sum(labels) / len(labels),
        "yes_bias.false_positives": (len(wrong) - sum(wrong)) / len(wrong),
    }


def filled(rows, tmp_path):
    """The question file, and the same with answers at random."""
    draw = random.Random(0)
    said = [draw.choices("012", [5, 4, 2])[0] for _ in rows]
    (tmp_path / "HallusionBench.json").write_text(json.dumps(rows))
    given = [row | {"model_prediction": SAID[one]} for row, one in zip(rows, said, strict=True)]
    (tmp_path / "result.json").write_text(json.dumps(given))
    return said, given


def test_all_figures_are_those_of_the_script(rows, tmp_path):
    said, _ = filled(rows, tmp_path)
    verdicts = [2 if one == "2" else int(one == row["gt_answer"]) for row, one in zip(rows, said, strict=True)]
    original = {key(r, "question_id"): one for r, one in zip(rows, said, strict=True) if r["figure_id"] == "0"}
    same = [one == original[key(row, "question_id")] for row, one in zip(rows, said, strict=True)]
    result = score("hallusionbench", tmp_path / "result.json", tmp_path / "HallusionBench.json")
    expected = by_script(rows, verdicts, same)
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    assert result.facts["uncertain"] == said.count("2")


def test_all_figures_are_those_of_the_script_with_a_judge(rows, tmp_path, stub_judge):
    """The judge says of each answer, and of each two, what the file's answers stand for; once in other words."""
    said, given = filled(rows, tmp_path)
    for number, row in enumerate(given):
        row["model_prediction"] = f"{SAID[said[number]]} ({number})"
    (tmp_path / "result.json").write_text(json.dumps(given))
    labels = [row["gt_answer"] for row in rows]

    def reply(prompt):
        first, *others = [int(number) for number in re.findall(r"\((\d+)\)", prompt)]
        if others:
            return "Same." if said[first] == said[others[0]] else "They are different."
        verdict = "unclear" if said[first] == "2" else "correct" if said[first] == labels[first] else "incorrect"
        return f"The prediction is {verdict.upper()}."

    result = hallusionbench(tmp_path / "result.json", tmp_path / "HallusionBench.json", judge=stub_judge(reply))
    by_rule = score("hallusionbench", tmp_path / "result.json", tmp_path / "HallusionBench.json")
    assert result.tallies == by_rule.tallies
    assert result.facts["uncertain"] == said.count("2")
    assert result.facts["official_prompt"] is False
    # Each answer, and each but the originals against that on its original.
    assert result.facts["judge"]["asked"] == len(rows) + sum(row["figure_id"] != "0" for row in rows)


def test_files_of_lmms_eval_and_vlmevalkit(rows, tmp_path):
    _, given = filled(rows, tmp_path)
    samples = [
        {"doc_id": n, "target": row["gt_answer_details"], "filtered_resps": [row["model_prediction"]]}
        | {"token_counts": [None], "doc_hash": "0", "aAcc": row, "fAcc": row, "qAcc": row, "input": row["question"]}
        for n, row in enumerate(given)
    ]
    lmms = tmp_path / "20260801_120000_samples_hallusion_bench_image.jsonl"
    lmms.write_text("".join(json.dumps(row) + "\n" for row in samples))
    predictions = [
        {"index": "_".join(row[name] for name in ("category", "subcategory", "visual_input", "set_id", "figure_id"))}
        | {"question": row["question"], "answer": "Yes", "category": row["category"]}
        | {"l2-category": row["subcategory"], "prediction": row["model_prediction"]}
        for row in given
    ]
    for row, prediction in zip(given, predictions, strict=True):
        prediction["index"] += f"_{row['question_id']}"
    (tmp_path / "model_HallusionBench.json").write_text(json.dumps(predictions, indent=4))
    expected = score("hallusionbench", tmp_path / "result.json", tmp_path / "HallusionBench.json").tallies
    for file in (lmms, tmp_path / "model_HallusionBench.json"):
        assert score("hallusionbench", file, tmp_path / "HallusionBench.json").tallies == expected


def test_originals_may_be_missing_as_in_the_other_tools(rows, tmp_path):
    _, given = filled(rows, tmp_path)
    (tmp_path / "result.json").write_text(json.dumps([row for row in given if row["visual_input"] != "0"]))
    with pytest.raises(MfpoError, match=r"72 without an answer .*VS_chart_0_0_0"):
        score("hallusionbench", tmp_path / "result.json", tmp_path / "HallusionBench.json")
    result = score("hallusionbench", tmp_path / "result.json", tmp_path / "HallusionBench.json", allow_missing=True)
    assert result.facts["missing"] == 72


@pytest.mark.parametrize("figures", ["0", "12"])
def test_a_part_of_the_questions_has_fewer_figures(rows, tmp_path, figures):
    _, answered = filled(rows, tmp_path)
    part = [row for row in answered if row["category"] == "VS" and row["visual_input"] in figures]
    (tmp_path / "result.json").write_text(json.dumps(part))
    result = score("hallusionbench", tmp_path / "result.json", tmp_path / "HallusionBench.json", allow_missing=True)
    assert result.json()["question_accuracy"]["n"] == len(part)
    assert ("consistency.correct" in result.tallies) == (figures != "0")
    assert "mixed" in result.tallies or figures != "0"


def test_another_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"category": "VD", "question": "Is it?"}]')
    with pytest.raises(MfpoError, match="entry 1: is not a question of HallusionBench"):
        load_hallusionbench(path)


def test_an_uncertain_answer_without_a_figure_is_no_mistake(rows, tmp_path):
    filled(rows, tmp_path)
    question = next(q for q in load_hallusionbench(tmp_path / "HallusionBench.json") if q.visual_input == "0")
    assert question.is_correct(2)
    assert cause_of(question, 2, 2, True) == (False, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("It is impossible to determine whether it is larger.", None),
        ("The image does not provide enough information.", None),
        ("I don't know which one is longer", None),
        ("It's unclear.", None),
        ("No, it is not possible to tell.", "no"),
        ("The two lines are not of one length. I cannot tell why.", "no"),
        ("There isn't a circle.", "no"),
        ("Yes, but I am not sure.", "yes"),
        ("0", "no"),
        ("2", None),
    ],
)
def test_an_answer_that_does_not_know_is_uncertain(text, said):
    assert read_hallusion(text) == said


def test_a_question_that_the_judge_refuses_is_in_no_figure(rows, tmp_path, stub_judge):
    filled(rows, tmp_path)
    judge = stub_judge(lambda prompt: "correct")
    server, refused = judge.server, rows[0]["question"]
    well = server.well
    server.well = lambda request, body: (server.bad_request if refused in str(body) else well)(request, body)
    result = hallusionbench(tmp_path / "result.json", tmp_path / "HallusionBench.json", judge=judge)
    missing = [row for row in rows if row["question"] == refused]
    assert (result.facts["answers"], result.facts["missing"]) == (len(rows) - len(missing), len(missing))
    assert result["question_accuracy"] == 100
    assert len(result.facts["judge"]["refused"]) == len(missing)
