"""Result files of lmms-eval and VLMEvalKit, in their schema."""

import csv
import json

import pytest

from mfpo.errors import MfpoError
from mfpo.evaluate.benchmark import score
from mfpo.evaluate.other_tools import read_result_rows
from mfpo.evaluate.pope import SPLITS


def sample(number, question_id, metric, text, label, prompt):
    """A row as lmms-eval's tracker writes it."""
    figure = {"question_id": question_id, "score": 1.0, "prediction": text.lower(), "ground_truth": label}
    row = {"doc_id": number, "target": label, "filtered_resps": [text], "token_counts": [None], "doc_hash": "a1"}
    return row | {metric: figure, "input": f"{prompt}\nAnswer the question using a single word or phrase."}


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_pope_by_lmms_eval(tmp_path):
    every = []
    for split, task in zip(SPLITS, ("random", "pop", "adv"), strict=True):
        texts = {number: f"Is there a {split} cat {number} in the image?" for number in (1, 2, 3)}
        questions = [{"question_id": n, "image": "a.jpg", "text": text, "label": "yes"} for n, text in texts.items()]
        write(tmp_path / "pope" / f"coco_pope_{split}.json", questions)
        said = {1: "Yes", 2: "No", 3: "Yes"}
        rows = [sample(n - 1, str(n), "pope_accuracy", said[n], "yes", text) for n, text in texts.items()]
        write(tmp_path / "tasks" / f"20260801_120000_samples_pope_{task}.jsonl", rows)
        every += [row | {"doc_id": len(every) + place} for place, row in enumerate(rows)]
    write(tmp_path / "20260801_120000_samples_pope.jsonl", every)
    for answers in (tmp_path / "tasks", tmp_path / "20260801_120000_samples_pope.jsonl"):
        result = score("pope", answers, tmp_path / "pope")
        assert [result[f"{split}.accuracy"] for split in SPLITS] == pytest.approx([200 / 3] * 3)


def test_pope_by_vlmevalkit(tmp_path):
    """Each question once, with its splits, and without POPE's image; two of a split have the same words."""
    asked = [("dog", "yes", SPLITS), ("cat", "no", ("random", "adversarial")), ("cup", "no", ("popular",))]
    asked += [("dog", "no", ("adversarial",)), ("dog", "yes", SPLITS)]
    said = ["Yes", "Yes", "No", "No", "No"]
    for split in SPLITS:
        rows = [
            {"question_id": n, "image": f"{n}.jpg", "text": f"Is there a {thing} in the image?", "label": label}
            for n, (thing, label, splits) in enumerate(asked, start=1)
            if split in splits
        ]
        write(tmp_path / "pope" / f"coco_pope_{split}.json", rows[::-1])
    rows = [
        {"index": n, "question": f"Is there a {thing} in the image? Please answer yes or no.", "prediction": text}
        | {"answer": label.capitalize(), "category": ",".join(splits), "image_path": "x.jpg"}
        for n, ((thing, label, splits), text) in enumerate(zip(asked, said, strict=True))
    ]
    (tmp_path / "model_POPE.json").write_text(json.dumps(rows))
    result = score("pope", tmp_path / "model_POPE.json", tmp_path / "pope")
    right = {"random": (1, 3), "popular": (2, 3), "adversarial": (2, 4)}
    for split, (part, whole) in right.items():
        assert result[f"{split}.accuracy"] == pytest.approx(100 * part / whole)
        assert result[f"{split}.recall"] == 50
    (tmp_path / "pope").rename(tmp_path / "repope")
    with pytest.raises(MfpoError, match="RePOPE changes the label; give POPE's questions"):
        score("pope", tmp_path / "model_POPE.json", tmp_path / "repope")
    (tmp_path / "repope").rename(tmp_path / "pope")
    (tmp_path / "model_POPE.json").write_text(json.dumps([*rows, rows[-1]]))
    with pytest.raises(MfpoError, match="question 4 matches none of POPE's split random by text and label"):
        score("pope", tmp_path / "model_POPE.json", tmp_path / "pope")


def amber_g(number, truth, text):
    """A row of lmms-eval's samples of `amber_g`: no id, and the objects in the image as the text of a list."""
    row = sample(number, None, "amber_chair", text, str(truth), "Describe this image")
    return row | {"amber_chair": {"chair_score": 0, "chair_num": 1}}


def test_amber_by_lmms_eval(tmp_path, reference_data):
    folder = reference_data / "amber"
    truths = [one["truth"] for one in json.loads((folder / "annotations.json").read_text())[:1004]]
    rows = [amber_g(number, truth, ", ".join(truth)) for number, truth in enumerate(truths)]
    write(tmp_path / "samples_amber_g.jsonl", rows[700:])
    result = score("amber", tmp_path / "samples_amber_g.jsonl", folder, allow_missing=True)
    assert result["generative.hal"] == pytest.approx(0, abs=1e-3)
    assert result.counts["generative"]["answers"] == 304
    # Of a data set in another order the ids are not known.
    write(tmp_path / "samples_amber_g.jsonl", [row | {"doc_id": 1003 - row["doc_id"]} for row in rows])
    with pytest.raises(MfpoError, match=r"rows .* match no question of AMBER"):
        score("amber", tmp_path / "samples_amber_g.jsonl", folder)


def test_amber_by_vlmevalkit(tmp_path, reference_data):
    folder = reference_data / "amber"
    truths = {one["id"]: one for one in json.loads((folder / "annotations.json").read_text())}
    asked = json.loads((folder / "query_discriminative.json").read_text())
    rows = [
        {"index": n, "image_path": one["image"], "question": one["query"], "category": truths[one["id"]]["type"]}
        | {"answer": truths[one["id"]]["truth"], "prediction": truths[one["id"]]["truth"].capitalize()}
        for n, one in enumerate(asked[:-1000:-1])
    ]
    (tmp_path / "model_AMBER.json").write_text(json.dumps(rows))
    result = score("amber", tmp_path / "model_AMBER.json", folder, allow_missing=True)
    assert result["discriminative.accuracy"] == pytest.approx(100, abs=1e-3)
    (tmp_path / "model_AMBER.json").write_text(json.dumps([*rows[:-1], rows[-1] | {"image_path": ""}]))
    with pytest.raises(MfpoError, match=r"1 of 999 rows \(998\) match no question of AMBER"):
        score("amber", tmp_path / "model_AMBER.json", folder)


def test_mme_by_lmms_eval(tmp_path):
    # Both questions on an image have one id.
    rows = [
        sample(number, "code_reasoning/0020.png", "mme_cognition_score", said, label, "Is it Python?")
        for number, (said, label) in enumerate([("Yes", "Yes"), ("Yes", "No")])
    ]
    write(tmp_path / "samples_mme.jsonl", rows)
    assert score("existence", tmp_path / "samples_mme.jsonl")["accuracy"] == 50


PREDICTIONS = [
    {"index": "0", "question": "Is there a dog?", "answer": "Yes", "category": "existence", "image_path": "a.jpg"}
    | {"prediction": "Yes, there is."},
    {"index": "1", "question": "Is there a cat?", "answer": "No", "category": "existence", "image_path": "a.jpg"}
    | {"prediction": "Yes"},
]


@pytest.mark.parametrize("ending", ["json", "tsv", "xlsx"])
def test_predictions_of_vlmevalkit(tmp_path, ending):
    path = tmp_path / f"model_MME.{ending}"
    if ending == "json":
        path.write_text(json.dumps([row | {"index": int(row["index"])} for row in PREDICTIONS], indent=4))
    elif ending == "tsv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, PREDICTIONS[0], delimiter="\t", quoting=csv.QUOTE_ALL)
            table.writeheader()
            table.writerows(PREDICTIONS)
    else:
        pytest.importorskip("openpyxl")
        import pandas

        pandas.DataFrame(PREDICTIONS).to_excel(path, index=False)
    assert score("existence", path)["accuracy"] == 50


def test_a_question_that_failed_in_vlmevalkit(tmp_path):
    failed = PREDICTIONS[1] | {"prediction": "Failed to obtain answer via API."}
    (tmp_path / "a.json").write_text(json.dumps([PREDICTIONS[0], failed]))
    with pytest.raises(MfpoError, match="1 of 2 questions have an error"):
        score("existence", tmp_path / "a.json")


def test_a_table_that_is_none(tmp_path):
    with pytest.raises(MfpoError, match=r"none\.tsv: cannot be read"):
        read_result_rows(tmp_path / "none.tsv")
    pytest.importorskip("openpyxl")
    (tmp_path / "cut.xlsx").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(MfpoError, match=r"cut\.xlsx: cannot be read"):
        read_result_rows(tmp_path / "cut.xlsx")
