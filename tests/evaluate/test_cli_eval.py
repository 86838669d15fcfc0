"""`mfpo eval` as a user types it; judges are a local server that speaks the protocol."""

import json
import re
import sys

import pytest

from mfpo.cli import main
from mfpo.evaluate.mmhal import TYPES
from mfpo.evaluate.pope import SPLITS

SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."


@pytest.fixture
def mfpo(monkeypatch, capsys):
    """Runs a command; gives its exit status, stdout and stderr."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mfpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pope(tmp_path):
    """A folder of three splits with four questions each."""
    for split in SPLITS:
        rows = [
            {"question_id": number, "image": f"{number}.jpg", "text": f"Is there a {split} dog?"}
            | {"label": "yes" if number % 2 else "no"}
            for number in range(4)
        ]
        write(tmp_path / "pope" / f"coco_pope_{split}.jsonl", rows)
        write(
            tmp_path / "said" / f"{split}.jsonl", [{"question_id": row["question_id"], "text": "Yes"} for row in rows]
        )
    return tmp_path / "pope"


def test_pope(mfpo, pope, tmp_path):
    out = tmp_path / "new" / "pope.json"
    status, shown, _ = mfpo("eval", "pope", tmp_path / "said", "--annotations", pope, "--json", out)
    assert status == 0
    figures = json.loads(out.read_text())
    assert tuple(figures) == SPLITS
    assert {name: figures["popular"][name]["value"] for name in ("accuracy", "recall", "yes_ratio")} == {
        "accuracy": 50, "recall": 100, "yes_ratio": 100,
    }  # fmt: skip
    assert re.search(r"adversarial\.tolerant\.accuracy +│ 50\.00 ", shown)


def test_one_split_of_pope(mfpo, pope, tmp_path):
    command = ("eval", "pope", tmp_path / "said" / "random.jsonl", "--annotations", pope)
    status, _, err = mfpo(*command)
    assert (status, err.count("\n")) == (1, 1)
    assert "no answers to the split popular, adversarial" in err
    status, shown, _ = mfpo(*command, "--allow-missing")
    assert status == 0
    assert re.search(r"popular\.missing +│ 4 ", shown)


def test_existence_with_answers_to_other_questions(mfpo, pope, tmp_path):
    answers = [
        {"question_id": number, "image": f"{number}.jpg", "prompt": "Is there a popular dog?", "text": "Yes"}
        for number in range(4)
    ]
    said = write(tmp_path / "answers.jsonl", answers)
    status, _, err = mfpo("eval", "existence", said, "--annotations", pope / "coco_pope_random.jsonl")
    assert status == 1
    assert "4 of 4 answers have a different image or prompt" in err
    assert mfpo("eval", "existence", said, "--annotations", pope / "coco_pope_popular.jsonl")[0] == 0


def test_a_failed_question_is_scored_only_if_allowed(mfpo, pope, tmp_path):
    rows = [{"question_id": 0, "text": None, "error": "no reply"}]
    rows += [{"question_id": number, "text": "No"} for number in (1, 2, 3)]
    command = ("eval", "existence", write(tmp_path / "a.jsonl", rows), "--annotations", pope / "coco_pope_random.jsonl")
    status, _, err = mfpo(*command)
    assert status == 1
    assert "1 of 4 questions have an error instead of an answer (0); ask them again with `mfpo answer --retry-" in err
    status, shown, _ = mfpo(*command, "allow_missing=true")
    assert status == 0
    assert re.search(r"missing +│ 1 ", shown)


@pytest.fixture
def mmhal(reference_data, tmp_path):
    """The template, and answers "good" and "bad", the latter with an answer that the judge refuses to rate."""
    template = reference_data / "mmhal" / "mmhal-bench_answer_template.json"
    rows = [{"question_id": number, "text": f"splendid {number}."} for number in range(96)]
    write(tmp_path / "good.jsonl", rows)
    write(tmp_path / "bad.jsonl", [row | {"text": "refuse" if row["question_id"] == 7 else "x"} for row in rows])
    return template


def rate(prompt):
    return "I refuse." if "refuse" in prompt else "Rating: 5" if "splendid" in prompt else "Rating: 1"


def test_mmhal_and_its_comparison_from_the_cache(mfpo, mmhal, fake_server, tmp_path):
    with fake_server(rate) as server:
        judge = ("--annotations", mmhal, "--judge", "judge-1", "--endpoint", server.url)
        prices = ("prompt_price=1", "completion_price=2")
        assert mfpo("eval", "mmhal", tmp_path / "good.jsonl", *judge)[0] == 0
        status, shown, _ = mfpo(
            "eval", "mmhal", tmp_path / "bad.jsonl", *judge, *prices, "--json", tmp_path / "new" / "bad.json"
        )
        asked = len(server.bodies)
        compared = ("eval", "compare", tmp_path / "good.jsonl", tmp_path / "bad.jsonl", "--benchmark", "mmhal")
        differing, table, _ = mfpo(*compared, *judge, "--json", tmp_path / "newer" / "difference.json")
        assert len(server.bodies) == asked
    assert (status, differing) == (0, 0)
    figures = json.loads((tmp_path / "new" / "bad.json").read_text())
    assert figures["unreadable_questions"] == ["7"]
    # 98 requests of 100 and 10 tokens.
    assert figures["judge"]["cost"] == pytest.approx(98 * 120 / 1e6)
    assert re.search(r"judge\.cost +│ 0\.0118 ", shown)
    assert re.search(r"│ score +│ 0\.99 ", shown)
    assert re.search(r"unreadable_questions +│ 7 ", shown)
    for kind in TYPES:
        assert f"by_type.{kind}.hallucination_rate" in shown
    difference = json.loads((tmp_path / "newer" / "difference.json").read_text())["score"]
    assert (difference["a"], difference["b"], difference["n"]) == (5, pytest.approx(95 / 96), 96)
    assert re.search(r"│ score +│ 5\.00 +│ 0\.99 +│ \+4\.01 ", table)


def test_an_answers_file_that_does_not_exist_leaves_nothing_behind(mfpo, mmhal, tmp_path):
    typo = tmp_path / "typo" / "none.jsonl"
    status, _, err = mfpo("eval", "mmhal", typo, "--annotations", mmhal, "--judge", "judge-1")
    assert status == 1
    assert "none.jsonl: cannot be read" in err
    assert not typo.parent.exists()


def test_llava_bench_with_the_official_prompt(mfpo, reference_data, fake_server, tmp_path):
    rows = [{"question_id": number, "text": f"mine {number}."} for number in range(90)]
    first = write(tmp_path / "first.jsonl", rows)
    second = write(tmp_path / "second.jsonl", [row | {"text": f"{row['text']} Oh"} for row in rows])
    (tmp_path / "system.txt").write_text(SYSTEM + "\n")

    def score(prompt):
        return "Both are nice." if "mine 3. Oh" in prompt else "8 4" if "Oh" in prompt else "8 6"

    with fake_server(score) as server:
        judge = ("--annotations", reference_data / "llava_bench", "--judge", "judge-1", "--endpoint", server.url)
        judge += (f"system={tmp_path / 'system.txt'}", "official=true")
        status, _, _ = mfpo("eval", "llava-bench", first, *judge, "--json", tmp_path / "first.json")
        status2, shown, _ = mfpo("eval", "llava-bench", second, *judge)
        asked = len(server.bodies)
        compared, table, _ = mfpo("eval", "compare", first, second, "--benchmark", "llava-bench", *judge)
        assert len(server.bodies) == asked
    assert (status, status2, compared) == (0, 0, 0)
    assert server.bodies[0]["messages"][0] == {"role": "system", "content": SYSTEM}
    figures = json.loads((tmp_path / "first.json").read_text())
    assert (figures["official_prompt"], figures["official_order"]) == (True, True)
    assert (figures["overall"]["value"], figures["overall"]["n"]) == (75, 90)
    assert re.search(r"unreadable_questions +│ 3 ", shown)
    # The question that is unreadable for one of them counts for neither.
    assert re.search(r"overall +│ 75\.00 +│ 50\.00 +│ \+25\.00 .* 89 ", table)
    assert "1 left out, unreadable for one of the two: 3" in table


@pytest.fixture
def captions(tmp_path):
    truth = write(tmp_path / "truth.jsonl", [{"image_id": number, "objects": ["dog"]} for number in range(4)])
    for name, text in {"first": "We can see a dog.", "second": "We can see a dog and a cat."}.items():
        rows = [{"image_id": number, "prompt": "Describe it.", "text": text} for number in range(4)]
        write(tmp_path / f"{name}.jsonl", rows)
    return truth


def test_object_halbench_by_rules_and_by_a_judge(mfpo, captions, fake_server, tmp_path):
    files = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    rules = ("--annotations", captions, "extract=rules")
    status, shown, _ = mfpo("eval", "object-halbench", files[1], *rules, "--json", tmp_path / "rules.json")
    assert status == 0
    figures = json.loads((tmp_path / "rules.json").read_text())
    assert (figures["chair_i"]["value"], figures["extract"], figures["judge"]) == (50, "rules", None)
    assert "4 images instead of 300" in " ".join(shown.replace("│", " ").split())
    with fake_server(lambda prompt: '["dog", "cat"]' if "cat" in prompt else '["dog"]') as server:
        judge = ("--annotations", captions, "--judge", "judge-1", "--endpoint", server.url)
        status, shown, _ = mfpo("eval", "object-halbench", files[1], *judge, "extract=judge")
        compared, table, _ = mfpo("eval", "compare", *files, "--benchmark", "object-halbench", *judge)
    assert (status, compared) == (0, 0)
    assert re.search(r"chair_i +│ 50\.00 ", shown)
    assert re.search(r"chair_i +│ 0\.00 +│ 50\.00 +│ -50\.00 ", table)
    by_rules = mfpo("eval", "compare", *files, "--benchmark", "object-halbench", *rules)[1]
    assert by_rules == table


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["extract=judge"], "extract is judge, but no judge is given"),
        (["extract=rules", "--judge", "judge-1"], "extract is rules, but a judge is given"),
        (["attempts=2"], "no judge is named"),
        (["template=prompt.txt"], "a template is the prompt of a judge"),
        (["tagger=textblob"], "a tagger reads what a judge lists"),
    ],
)
def test_half_a_judge(mfpo, captions, tmp_path, options, words):
    status, _, err = mfpo("eval", "object-halbench", tmp_path / "first.jsonl", "--annotations", captions, *options)
    assert (status, words in err) == (1, True), err


@pytest.mark.parametrize(("out", "words"), [("", "is a folder"), ("first.jsonl/x.json", "first.jsonl is a file")])
def test_a_json_file_that_cannot_be_is_told_before_anything_is_asked(mfpo, captions, fake_server, tmp_path, out, words):
    with fake_server(lambda prompt: '["dog"]') as server:
        judge = ("--annotations", captions, "--judge", "judge-1", "--endpoint", server.url)
        first = tmp_path / "first.jsonl"
        status, _, err = mfpo("eval", "object-halbench", first, *judge, "--json", tmp_path / out)
        assert (status, server.bodies, err.count("\n"), words in err) == (1, [], 1, True), err
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"truth.jsonl", "first.jsonl", "second.jsonl"}


def test_a_judge_whom_only_the_tolerant_rule_reads(mfpo, mmhal, fake_server, tmp_path):
    with fake_server(lambda prompt: "**Rating:** **4**") as server:
        judge = ("--annotations", mmhal, "--judge", "judge-1", "--endpoint", server.url)
        status, shown, _ = mfpo("eval", "mmhal", tmp_path / "good.jsonl", *judge)
    assert status == 0
    assert re.search(r"tolerant\.score +│ 4\.00 ", shown)
    assert "No verdict can be read" not in shown
    assert "The official rule cannot read any verdict; see the tolerant figures." in shown


def test_thoughts_are_left_out_by_every_benchmark_that_reads_answers(mfpo, captions, tmp_path):
    rows = [json.loads(line) for line in (tmp_path / "second.jsonl").read_text().splitlines()]
    thought = write(tmp_path / "thought.jsonl", [row | {"text": f"A car?</think>{row['text']}"} for row in rows])
    before = thought.read_bytes()
    for benchmark in ("chair", "object-halbench"):
        found = []
        for answers in (tmp_path / "second.jsonl", thought):
            command = ("eval", benchmark, answers, "--annotations", captions, "--json", tmp_path / "figures.json")
            status, shown, _ = mfpo(*command)
            assert (status, "thinking" in shown) == (0, answers == thought)
            found.append(json.loads((tmp_path / "figures.json").read_text()))
        assert found[1].pop("thinking") == 4
        assert found[0] == found[1]
    compared = ("eval", "compare", tmp_path / "second.jsonl", thought, "--benchmark", "chair")
    _, table, _ = mfpo(*compared, "--annotations", captions)
    assert re.search(r"length +│ 8\.00 +│ 8\.00 ", table)
    assert thought.read_bytes() == before


def test_popes_published_files(mfpo, pope, tmp_path):
    for split in SPLITS:
        questions = (pope / f"coco_pope_{split}.jsonl").rename(pope / f"coco_pope_{split}.json")
        rows = [json.loads(line) for line in questions.read_text().splitlines()]
        write(tmp_path / "own" / f"{split}.json", [{"question": row["text"], "answer": "Yes"} for row in rows])
    status, shown, _ = mfpo("eval", "pope", tmp_path / "own", "--annotations", pope)
    assert status == 0
    assert re.search(r"adversarial\.accuracy +│ 50\.00 ", shown)
    command = ("eval", "existence", tmp_path / "own" / "random.json", "--annotations")
    assert mfpo(*command, pope / "coco_pope_random.json")[0] == 0
    status, _, err = mfpo(*command, pope / "coco_pope_popular.json")
    assert (status, err.count("\n")) == (1, 1)
    assert "answer 1, 2, 3 and 1 more does not match the question at its position" in err
    both = ("eval", "compare", tmp_path / "own", tmp_path / "said", "--benchmark", "pope", "--annotations", pope)
    assert mfpo(*both)[0] == 0


def test_a_judge_of_whom_nothing_can_be_read(mfpo, mmhal, fake_server, tmp_path):
    with fake_server(lambda prompt: "I refuse.") as server:
        judge = ("--annotations", mmhal, "--judge", "judge-1", "--endpoint", server.url, "attempts=1")
        status, shown, _ = mfpo("eval", "mmhal", tmp_path / "good.jsonl", *judge)
    assert status == 0
    assert re.search(r"│ score +│ 0\.00 ", shown)
    assert shown.index("│ score") < shown.index("by_type.")
    assert "No verdict can be read: these figures say nothing about the answers." in shown


def test_an_option_that_the_benchmark_does_not_have(mfpo, captions, tmp_path):
    files = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    command = ("eval", "compare", *files, "--benchmark", "chair", "--annotations", captions)
    status, _, err = mfpo(*command, "official=true")
    assert (status, "no setting is named 'official'" in err) == (1, True)
    status, table, _ = mfpo(*command, "--json", tmp_path / "new" / "chair.json")
    assert (status, (tmp_path / "new" / "chair.json").exists()) == (0, True)
    assert re.search(r"chair_s +│ 0\.00 +│ 100\.00 ", table)


def test_a_name_that_no_benchmark_has(mfpo):
    status, _, err = mfpo("eval", "chiar", "a.jsonl")
    assert (status, err) == (1, "error: no benchmark is named 'chiar'; did you mean 'chair'?\n")


def test_flags_of_versions_before(mfpo, captions, reference_data, tmp_path):
    synonyms = reference_data / "chair" / "synonyms_refine_object_halbench.txt"
    questions = write(tmp_path / "asked" / "q.jsonl", [{"image_id": n, "question": "Describe it."} for n in range(5)])
    command = ("eval", "object-halbench", tmp_path / "second.jsonl", "--annotations", captions)
    written = []
    for words in (
        ("--synonyms", synonyms, "--questions", questions, "--allow-missing"),
        (f"synonyms={synonyms}", f"questions={questions}", "allow_missing=true"),
    ):
        out = tmp_path / "figures.json"
        assert mfpo(*command, *words, "--json", out)[0] == 0
        written.append(json.loads(out.read_text()))
    assert written[0] == written[1]
    assert written[0]["missing"] == 1
    assert "other table of synonyms" not in written[0]["not_official"]


def test_popes_files_one_by_one_beside_a_setting(mfpo, pope, tmp_path):
    files = [tmp_path / "said" / f"{split}.jsonl" for split in SPLITS[:2]]
    status, shown, _ = mfpo("eval", "pope", files[0], "allow_missing=true", files[1], "--annotations", pope)
    assert status == 0
    assert re.search(r"popular\.accuracy +│ 50\.00 ", shown)
    assert re.search(r"adversarial\.missing +│ 4 ", shown)
