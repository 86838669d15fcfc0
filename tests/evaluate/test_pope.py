"""POPE's three splits, by its own reading and by ours."""

import gzip
import json
import random

import pytest

from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer
from mfpo.evaluate.existence import load_questions, read_as_pope
from mfpo.evaluate.figures import paired_differences
from mfpo.evaluate.pope import SPLITS, pope, read_pope, split_files

SAID = [
    "Yes, there is.",
    "No, there is not.",
    "NO",
    "There isn't.",
    "",
    "There is a dog. No, a cat.",
    "no",
    "I am, no, not",
]


@pytest.fixture(scope="module")
def questions(reference_data):
    return {split: load_questions(path) for split, path in split_files([reference_data / "pope"]).items()}


def answers_of(questions, text_of):
    return {
        split: [Answer(asked.question_id, asked.image, asked.text, text_of(asked)) for asked in rows]
        for split, rows in questions.items()
    }


def script(texts, labels):
    """POPE's evaluate.py, step by step, in percent."""
    said = []
    for text in texts:
        if text.find(".") != -1:
            text = text.split(".")[0]
        words = text.replace(",", "").split(" ")
        said.append(0 if "No" in words or "not" in words or "no" in words else 1)
    true = [0 if label == "no" else 1 for label in labels]
    pairs = list(zip(said, true, strict=True))
    tp, fp, fn = pairs.count((1, 1)), pairs.count((1, 0)), pairs.count((0, 1))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": 100 * (tp + pairs.count((0, 0))) / len(pairs),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "f1": 100 * 2 * precision * recall / (precision + recall),
        "yes_ratio": 100 * sum(said) / len(said),
    }


def test_the_headline_is_that_of_popes_script(questions):
    draw = random.Random(0)
    answers = answers_of(questions, lambda asked: draw.choice(SAID))
    written = json.loads(json.dumps(pope(answers, questions).json()))
    assert tuple(written) == SPLITS
    for split, figures in written.items():
        slow = script([given.text for given in answers[split]], [asked.label for asked in questions[split]])
        assert {name: figures[name]["value"] for name in slow} == pytest.approx(slow, rel=1e-12)
        assert all(figures[name]["low"] < slow[name] < figures[name]["high"] for name in slow)
        assert figures["accuracy"]["n"] == figures["questions"] == len(questions[split])
        assert figures["unreadable"] == sum(given.text in ("", "I am") for given in answers[split])
        # "NO" and "There isn't." are a yes for the script alone, and so is an empty text.
        assert figures["tolerant"]["yes_ratio"]["value"] < figures["yes_ratio"]["value"]


def test_perfect_and_empty_answers(questions):
    perfect = pope(answers_of(questions, lambda asked: asked.label.capitalize()), questions)
    empty = pope(answers_of(questions, lambda asked: ""), questions)
    for split in SPLITS:
        official = perfect.splits[split].official
        assert (official["accuracy"], official["precision"], official["recall"], official["f1"]) == (100, 100, 100, 100)
        # The script takes an empty text for a yes; read as it is, nothing is right.
        assert empty.splits[split].official["yes_ratio"] == 100
        assert (empty.splits[split].tolerant["accuracy"], empty.splits[split].tolerant["f1"]) == (0, 0)


@pytest.mark.parametrize(
    ("text", "reading"),
    [("No.", "no"), ("no", "no"), ("There is not", "no"), ("not, really", "no"), ("Nothing", "yes"), ("None", "yes"),
     ("NO", "yes"), ("Yes. No.", "yes"), ("Not", "yes"), ("No!", "yes"), ("No\nmore", "yes")],
)  # fmt: skip
def test_near_misses_of_popes_reading(text, reading):
    assert read_as_pope(text) == reading


def test_missing_answers_are_an_error_or_counted(questions):
    answers = {"random": answers_of(questions, lambda asked: "Yes")["random"][:100]}
    with pytest.raises(MfpoError, match=rf"{len(questions['random']) - 100} without an answer \(101, 102, 103 and"):
        pope(answers, {"random": questions["random"]})
    with pytest.raises(MfpoError, match=r"no answers to the split popular, adversarial; [^;]*allow_missing=true"):
        pope(answers, questions)
    written = pope(answers, questions, allow_missing=True).json()
    assert (written["random"]["questions"], written["random"]["missing"]) == (100, len(questions["random"]) - 100)
    assert written["popular"] == {"questions": 0, "missing": len(questions["popular"])}


def test_answers_of_another_split_or_benchmark(questions):
    answers = answers_of(questions, lambda asked: "Yes")
    with pytest.raises(MfpoError, match=r"different image or prompt .* give answers to POPE's split popular"):
        pope({"popular": answers["adversarial"]}, questions, allow_missing=True)
    other = [Answer("1", "AMBER_1.jpg", None, "Yes")]
    with pytest.raises(MfpoError, match=r"1 of 1 answers .* \(1\)"):
        pope({"random": other}, questions, allow_missing=True)
    with pytest.raises(MfpoError, match="to the split random, adversarial, but no questions"):
        pope(answers, {"popular": questions["popular"]})


def test_a_longer_prompt_around_the_question_is_the_same_question(questions):
    asked = questions["random"][0]
    given = Answer(asked.question_id, asked.image, f"{asked.text} Answer yes or no.", "Yes")
    assert pope({"random": [given]}, questions, allow_missing=True).splits["random"].official.facts["questions"] == 1


def test_the_split_stands_in_the_name(tmp_path):
    for name in ("coco_pope_popular.jsonl", "answers-random.jsonl"):
        (tmp_path / name).touch()
    other = tmp_path / "other"
    (other / "empty").mkdir(parents=True)
    (other / "random.jsonl").touch()
    (other / "answers.jsonl").touch()
    assert list(split_files([tmp_path])) == ["random", "popular"]
    with pytest.raises(MfpoError, match=r"are both the split random"):
        split_files([tmp_path, other / "random.jsonl"])
    with pytest.raises(MfpoError, match=r"answers\.jsonl: its name must contain exactly one of"):
        split_files([other / "answers.jsonl"])
    with pytest.raises(MfpoError, match=r"no \.jsonl file in .*empty"):
        split_files([other / "empty"])
    with pytest.raises(MfpoError, match=r"none\.jsonl: no such file"):
        split_files([other / "none.jsonl"])


def test_one_file_of_all_splits(questions, reference_data, tmp_path):
    """LLaVA's rows: its own ids, a longer prompt, no image, one split after the other."""
    rows = [
        {"question_id": f"x{number}", "prompt": f"{asked.text}\nAnswer with one word.", "text": asked.label}
        for number, asked in enumerate(
            asked for split in ("adversarial", "random", "popular") for asked in questions[split]
        )
    ]
    (tmp_path / "llava.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, _ = read_pope([tmp_path / "llava.jsonl"], reference_data / "pope")
    # All that is said is right, so that no answer has come to another question of its split.
    assert {
        split: score.official["accuracy"] for split, score in pope(found, questions).splits.items()
    } == dict.fromkeys(SPLITS, 100)


@pytest.mark.parametrize("change", ["order", "number", "without prompts"])
def test_one_file_of_which_nobody_knows_the_splits(questions, reference_data, tmp_path, change):
    rows = [
        {"question_id": number, "prompt": asked.text, "text": "yes"}
        for number, asked in enumerate(asked for split in SPLITS for asked in questions[split])
    ]
    if change == "order":
        rows[0], rows[1] = rows[1], rows[0]
    elif change == "number":
        rows.pop()
    else:
        rows = [{"question_id": row["question_id"], "text": "yes"} for row in rows]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(MfpoError, match=r"a\.jsonl: its name contains none of .* give one file per split"):
        read_pope([tmp_path / "a.jsonl"], reference_data / "pope")


def test_comparison(questions):
    good = pope(answers_of(questions, lambda asked: asked.label), questions).tallies
    yes = pope(answers_of(questions, lambda asked: "yes"), questions).tallies
    found = paired_differences(good, yes)["adversarial.accuracy"]
    assert (found.a, found.b, found.n) == (100, 50, 3_000)
    assert found.low > 45
    assert found.p < 0.01


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def published(tmp_path):
    """The questions as POPE publishes them: .json files with an object a line; their number and order tell a split."""
    for split in SPLITS:
        rows = [
            {"question_id": number, "image": f"{number // 2}.jpg", "text": f"Is there a {what} in the image?"}
            | {"label": "no" if number % 2 else "yes"}
            for number, what in enumerate(("dog", split, "dog", f"{split} cat"), start=1)
        ]
        write(tmp_path / "questions" / f"coco_pope_{split}.json", rows)
    return tmp_path / "questions"


def own_answers(questions, split):
    rows = [json.loads(line) for line in (questions / f"coco_pope_{split}.json").read_text().splitlines()]
    return [{"question": row["text"], "answer": row["label"].capitalize()} for row in rows]


def accuracies(answers, questions):
    return {split: score.official["accuracy"] for split, score in pope(answers, questions).splits.items()}


def test_popes_own_files(published, tmp_path):
    for split in SPLITS:
        write(tmp_path / "own" / f"{split}.json", own_answers(published, split))
    (tmp_path / "own" / "figures.json").write_text("{}")
    (tmp_path / "own" / "random.jsonl.made_by.json").write_text("{}")
    assert accuracies([tmp_path / "own"], published) == dict.fromkeys(SPLITS, 100)
    # What somebody has made .jsonl of is there once.
    for split in SPLITS:
        (published / f"coco_pope_{split}.jsonl").write_bytes((published / f"coco_pope_{split}.json").read_bytes())
        (tmp_path / "own" / f"{split}.json").write_text(json.dumps(own_answers(published, split)))
    assert accuracies([tmp_path / "own"], published) == dict.fromkeys(SPLITS, 100)


def test_popes_own_files_gzipped(published, tmp_path):
    for split, ending in zip(SPLITS, ("json.gz", "jsonl.gz", "json.gz"), strict=True):
        write(tmp_path / "own" / f"{split}.json", own_answers(published, split))
        file = published / f"coco_pope_{split}.json"
        file.with_suffix(f".{ending}").write_bytes(gzip.compress(file.read_bytes()))
        if split != "random":
            file.unlink()
    with pytest.raises(MfpoError, match="are both the split random"):
        read_pope([tmp_path / "own"], published)
    (published / "coco_pope_random.json").unlink()
    assert accuracies([tmp_path / "own"], published) == dict.fromkeys(SPLITS, 100)


def test_popes_own_answers_in_one_file(published, tmp_path):
    rows = [row for split in ("popular", "random", "adversarial") for row in own_answers(published, split)]
    assert accuracies([write(tmp_path / "all.json", rows)], published) == dict.fromkeys(SPLITS, 100)


def test_popes_own_answers_under_another_splits_name(published, tmp_path):
    for split, other in zip(SPLITS, SPLITS[::-1], strict=True):
        write(tmp_path / "own" / f"{split}.json", own_answers(published, other))
    with pytest.raises(MfpoError, match=r"random\.json: answers without question_id .* answer 2, 4 does not match"):
        read_pope([tmp_path / "own"], published)


def repope(texts, labels):
    """RePOPE's eval_utils.py, step by step, in percent."""
    said = ["yes" if "yes" in text.lower() else "no" if "no" in text.lower() else None for text in texts]
    pairs = list(zip(said, labels, strict=True))
    tp, fp, tn, fn = (pairs.count(pair) for pair in (("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes")))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": 100 * (tp + tn) / (tp + tn + fp + fn),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "f1": 100 * 2 * precision * recall / (precision + recall),
        "yes_ratio": 100 * (tp + fp) / (tp + tn + fp + fn),
    }


@pytest.mark.parametrize("folder", ["annotations", "RePOPE"])
def test_repope_takes_the_answers_to_pope(tmp_path, folder):
    # As many as it keeps of each split's 3,000, with POPE's numbers, in files named .json.
    draw = random.Random(0)
    expected = {}
    for split, count in zip(SPLITS, (2774, 2727, 2684), strict=True):
        rows = [
            {"question_id": n, "image": f"{n % 500}.jpg", "text": f"Is there an umbrella {n} in the image?"}
            | {"label": draw.choice(["yes", "no"])}
            for n in range(1, 3001)
        ]
        said = {row["question_id"]: draw.choice([*SAID, "A snowboard", "I see none; yes"]) for row in rows}
        kept = sorted(draw.sample(rows, count), key=lambda row: row["question_id"])
        name = f"coco_{'re' if folder == 'annotations' else ''}pope_{split}.json"
        write(tmp_path / folder / name, kept)
        prompts = {row["question_id"]: row["text"].replace("image", "imange") for row in rows}
        # lmms-eval's answers bring POPE's labels, of which RePOPE changes some.
        labels = {row["question_id"]: draw.choice(["yes", "no"]) for row in rows}
        write(
            tmp_path / f"answers_{split}.jsonl",
            [{"question_id": n, "prompt": prompts[n], "text": said[n], "label": labels[n]} for n in said],
        )
        expected[split] = repope([said[row["question_id"]] for row in kept], [row["label"] for row in kept])
    answers = [tmp_path / f"answers_{split}.jsonl" for split in SPLITS]
    written = pope(answers, tmp_path / folder).json()
    for split, count in zip(SPLITS, (2774, 2727, 2684), strict=True):
        figures = {name: written[split][name]["value"] for name in expected[split]}
        assert figures == pytest.approx(expected[split])
        assert (written[split]["left_out"], written[split]["missing"]) == (3000 - count, 0)
        assert written[split]["tolerant"]["accuracy"]["n"] == count


def test_repope_takes_no_other_answers(published, tmp_path):
    folder = published.rename(tmp_path / "repope")
    for split in SPLITS:
        write(tmp_path / f"{split}.jsonl", [{"question_id": n, "text": "Yes"} for n in (1, 2, 3, 4, 3001)])
    with pytest.raises(MfpoError, match=r"1 not in the questions \(3001\)"):
        pope([tmp_path / f"{split}.jsonl" for split in SPLITS], folder)


def test_repope_says_that_no_answer_is_yes_or_no(published, tmp_path):
    folder = published.rename(tmp_path / "repope")
    for split in SPLITS:
        write(tmp_path / f"{split}.jsonl", [{"question_id": n, "text": "A dog."} for n in (1, 2, 3, 4)])
    with pytest.raises(MfpoError, match=r"no answer to POPE's split .* has yes or no in it"):
        pope([tmp_path / f"{split}.jsonl" for split in SPLITS], folder)


def test_a_split_that_is_there_twice(published, tmp_path):
    write(published / "aokvqa_pope_random.json", own_answers(published, "random"))
    with pytest.raises(MfpoError, match="are both the split random"):
        read_pope([tmp_path], published)


def test_the_official_reading_is_not_touched_by_ours():
    texts = [
        "Yes, there is a no-parking sign.",
        "Yes, but no cat",
        "1. Yes",
        "(A) No.",
        "Answer: No",
        "**No**",
        "Yes; not",
    ]
    assert [read_as_pope(text) for text in texts] == ["yes", "no", "yes", "no", "no", "yes", "no"]


def test_files_may_be_texts(tmp_path):
    question = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"}
    (tmp_path / "asked").mkdir()
    for split in SPLITS:
        (tmp_path / "asked" / f"coco_pope_{split}.jsonl").write_text(json.dumps(question))
        (tmp_path / f"said_{split}.jsonl").write_text(json.dumps({"question_id": 1, "text": "Yes."}))
    result = pope([str(tmp_path / f"said_{split}.jsonl") for split in SPLITS], tmp_path / "asked")
    assert result["popular.accuracy"] == 100
