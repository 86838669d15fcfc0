"""Two files of answers, compared question by question."""

import json
from dataclasses import replace

import pytest

from mfpo.answer.judge_settings import JudgeSettings
from mfpo.errors import MfpoError, SettingError
from mfpo.evaluate.compare import compare
from mfpo.evaluate.llava_bench import CATEGORIES, LlavaData, LlavaQuestion, Rule
from mfpo.evaluate.pope import SPLITS


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def amber_files(tmp_path, folder):
    """Answers that say the truth, and answers that say "No"."""
    truths = [(e["id"], e["truth"]) for e in json.loads((folder / "annotations.json").read_text()) if e["id"] > 1_004]
    right = [{"id": name, "response": truth.capitalize()} for name, truth in truths]
    return write(tmp_path / "a.jsonl", right), write(tmp_path / "b.jsonl", [{**row, "response": "No"} for row in right])


def test_amber(tmp_path, reference_data):
    a, b = amber_files(tmp_path, reference_data / "amber")
    found = compare("amber", a, b, reference_data / "amber").differences
    # 4,789 of 14,216 answers are yes; existence has no such question, so that nothing differs there.
    accuracy = found["discriminative.accuracy"]
    assert accuracy.difference == pytest.approx(100 * 4_789 / 14_216, abs=0.01)
    assert accuracy.low < accuracy.difference < accuracy.high
    assert (accuracy.n, found["discriminative.existence.f1"].p) == (14_216, 1)


def test_equal_figures_of_amber_do_not_differ(tmp_path, reference_data):
    """A says "No" to every question of existence, B to half: both are right whenever they say it."""
    rows = json.loads((reference_data / "amber" / "annotations.json").read_text())
    names = [row["id"] for row in rows if row["type"] == "discriminative-hallucination"]
    a = write(tmp_path / "a.jsonl", [{"id": name, "response": "No"} for name in names])
    b = write(tmp_path / "b.jsonl", [{"id": name, "response": "No" if name % 2 else "Yes"} for name in names])
    found = compare("amber", a, b, reference_data / "amber").differences["discriminative.existence.precision"]
    assert (found.a, found.b, found.difference, found.low, found.high, found.p) == (100, 100, 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"question_id": "x"}, r"2 question ids are in only one of the two \(3, x\)"),
        ({"prompt": "Is there a dog?"}, r"1 of 4 have different prompts in the two files \(3\)"),
    ],
)
@pytest.mark.parametrize("benchmark", ["chair", "object-halbench"])
def test_captions_of_other_questions_about_the_same_images(tmp_path, benchmark, change, fault):
    truth = write(tmp_path / "truth.jsonl", [{"image_id": number, "objects": ["dog"]} for number in range(4)])
    rows = [
        {"question_id": str(number), "image_id": number, "prompt": "<image>\nDescribe it.", "text": "A dog."}
        for number in range(4)
    ]
    a = write(tmp_path / "a.jsonl", rows)
    b = write(tmp_path / "b.jsonl", [*rows[:3], rows[3] | change])
    with pytest.raises(MfpoError, match=fault):
        compare(benchmark, a, b, truth)
    # Where only one of the files numbers its questions, images tell which belong together.
    del rows[0]["question_id"], rows[1]["question_id"], rows[2]["question_id"], rows[3]["question_id"]
    b = write(tmp_path / "b.jsonl", [row | {"prompt": "Describe  it."} for row in rows])
    assert compare(benchmark, a, b, truth).differences["chair_i"].n == 4
    b = write(tmp_path / "b.jsonl", [*rows[:3], rows[3] | {"prompt": "What?"}])
    with pytest.raises(MfpoError, match="1 of 4 have different prompts"):
        compare(benchmark, a, b, truth)


def test_chair(tmp_path):
    truth = write(tmp_path / "truth.jsonl", [{"image_id": number, "objects": ["dog"]} for number in range(100)])
    a = write(tmp_path / "a.jsonl", [{"image_id": number, "caption": "A dog."} for number in range(100)])
    texts = ["A dog and a cat." if number < 10 else "A dog." for number in range(100)]
    b = write(tmp_path / "b.jsonl", [{"image_id": number, "caption": text} for number, text in enumerate(texts)])
    found = compare("chair", a, b, truth).differences
    assert (found["chair_s"].a, found["chair_s"].b, found["chair_s"].difference) == (0, 10, -10)
    assert found["chair_s"].high < 0
    assert (found["recall"].difference, found["recall"].p) == (0, 1)
    assert found["length"].difference == pytest.approx(-0.3)


def test_existence_and_pope(tmp_path):
    rows = [
        {
            "question_id": number,
            "image": f"{number}.jpg",
            "text": "Is there a dog?",
            "label": "yes" if number % 2 else "no",
        }
        for number in range(40)
    ]
    for split in SPLITS:
        write(tmp_path / "pope" / f"pope_{split}.jsonl", rows)
        write(tmp_path / "a" / f"{split}.jsonl", [{"question_id": r["question_id"], "text": r["label"]} for r in rows])
        write(tmp_path / "b" / f"{split}.jsonl", [{"question_id": r["question_id"], "text": "yes"} for r in rows])
    by_split = compare("pope", tmp_path / "a", tmp_path / "b", tmp_path / "pope").differences
    assert by_split["popular.accuracy"].difference == 50
    one = [tmp_path / name / "random.jsonl" for name in "ab"]
    existence = compare("existence", *one, tmp_path / "pope/pope_random.jsonl").differences
    assert existence["accuracy"] == by_split["random.accuracy"]


def test_answers_to_other_questions(tmp_path, reference_data):
    a, b = amber_files(tmp_path, reference_data / "amber")
    b.write_text("".join(b.read_text().splitlines(keepends=True)[2:]))
    with pytest.raises(MfpoError, match=r"2 ids are scored in only one of the two \(1005, 1006\)"):
        compare("amber", a, b, reference_data / "amber")


def test_an_unknown_benchmark(tmp_path):
    with pytest.raises(SettingError, match="no benchmark is named 'charm'; did you mean 'chair'"):
        compare("charm", tmp_path, tmp_path, tmp_path)


def test_settings_of_other_benchmarks(tmp_path):
    with pytest.raises(SettingError, match="no setting is named 'tagger'"):
        compare("existence", tmp_path, tmp_path, tmp_path, tagger="textblob")
    with pytest.raises(SettingError, match="no setting is named 'system'"):
        compare("mmhal", tmp_path, tmp_path, tmp_path, system=tmp_path)


def described(count, category="conv"):
    """Questions of LLaVA-Bench in memory, and two models' answers to them."""
    rules = {name: Rule("Assistant", "Rate them.") for name in CATEGORIES}
    questions = {str(n): LlavaQuestion(f"{n}.jpg", category, f"What {n}?", "a dog", "a caption") for n in range(count)}
    return LlavaData(questions, rules)


def test_figures_whose_questions_are_all_left_out_are_dropped(tmp_path, fake_server):
    pytest.importorskip("openai")
    data = described(2)
    data.questions["2"] = replace(data.questions["0"], category="detail", text="What 2?")
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", [{"question_id": n, "text": f"{name}{n}"} for n in range(3)])

    def reply(prompt):
        text = prompt if isinstance(prompt, str) else str(prompt)
        return "no" if any(unread in text for unread in lost) else "4 4"

    with fake_server(reply) as server:
        judge = JudgeSettings(model="judge-1", endpoint=server.url, attempts=1)
        lost = ("a0", "b1")  # between them all of "conv"
        found = compare("llava-bench", tmp_path / "a.jsonl", tmp_path / "b.jsonl", data, judge=judge)
        assert (found.left_out, found.differences.keys()) == (["0", "1"], {"overall", "detail"})
        lost = ("a0", "b1", "b2", "a2")
        for file in tmp_path.glob("*.verdicts.jsonl"):
            file.unlink()
        with pytest.raises(MfpoError, match="no question has a readable verdict on both answers"):
            compare("llava-bench", tmp_path / "a.jsonl", tmp_path / "b.jsonl", data, judge=judge)
