"""How near our figures are to those of the official scripts: writes docs/fidelity.md.

python benchmarks/fidelity.py --data ../shared/data
"""

import argparse
import random
from pathlib import Path

from mfpo.evaluate.answers import Answer
from mfpo.evaluate.chair import chair
from mfpo.evaluate.pope import pope, read_pope
from mfpo.truth import load_annotations

# CHAIR_s, CHAIR_i and recall that chair.py of Maxlinn/CHAIR-metric-standalone gives, with pattern 3.6's inflector and
# NLTK 3.10's tokenizer with its data (2026-11-28).
OFFICIAL = {
    "shikra": (55.6, 15.5116, 77.6903),
    "minigpt4": (29.0, 9.2387, 62.2703),
    "instructblip": (57.2, 22.7106, 68.8630),
}
SAID = [
    "Yes, there is.",
    "No, there is not.",
    "NO",
    "There isn't.",
    "",
    "There is a dog. No, a cat.",
    "no",
    "I am, not",
]

PAGE = """# Fidelity: our figures beside those of the official scripts

Made by `python benchmarks/fidelity.py --data ../shared/data`, which computes the differences in the first rows; the
other rows name the test that checks them.

| figure | official script | how compared | largest difference | what differs, and why |
|---|---|---|---|---|
| CHAIR with `synonyms=FILE` | LisaAnne/Hallucination `utils/chair.py`; \
recall: Maxlinn/CHAIR-metric-standalone `chair.py` | \
CHAIR_s, CHAIR_i, recall of {captions:,} captions of three models; \
the figures of the script are stored, to four decimals | {chair:.4f} \
| nothing known; copies of the script that take WordNet's lemmas (OPERA's) give other figures |
| CHAIR by default | the same | the same | {default:.2f} | our table of words ([evaluate.md](evaluate.md#chair)) |
| POPE | AoiDragon/POPE `evaluate.py` | five figures in three splits, {questions:,} answers drawn at random from eight \
spellings, against a plain reimplementation of the script | {pope:.4f} | nothing known; `tolerant` reads more |
| RePOPE | YanNeu/RePOPE `src/eval_utils.py` | random answers to as many questions as it keeps, \
and once (2026-11-29) to its own files, against a plain reimplementation of the script \
(`tests/evaluate/test_pope.py`) | below 0.001 | nothing known |
| HallusionBench | tianyi-lab/HallusionBench `evaluation.py`, `utils.py` | \
13 figures on random answers to 432 synthetic questions, and once (2026-11-29) to its own 1,129, \
against a plain reimplementation of the script (`tests/evaluate/test_hallusionbench.py`) | below 0.001 \
| a judge's replies differ from run to run; by default answers are read by rule |
| AMBER | junyangwang0410/AMBER `inference.py` | 32 figures on answers to all 15,220 questions, \
against a plain reimplementation of the script (`tests/evaluate/test_amber.py`) | 0 at its one decimal \
| without NLTK's data and `en_core_web_lg`, other nouns and similar words: `official` is false |
| AMBER with vectors | the same | the script itself, with `en_core_web_md` in place of `en_core_web_lg` and our nouns \
in place of NLTK's: 32 figures on answers to all 15,220 questions (2026-11-29) | 0 at its one decimal | \
`en_core_web_lg` and NLTK's tagger and WordNet were not available here, so `official: true` was not run; \
without vectors these answers have CHAIR 71.4 instead of 67.1 |
| MMHal-Bench | RLHF-V/RLHF-V `eval/eval_gpt_mmhal.py` | the steps of the script over 96 replies \
(`tests/evaluate/test_mmhal.py`) | below 0.001 | the judge's model and prompt |
"""


def chair_differences(data: Path) -> tuple[int, float, float]:
    """The captions, and the largest differences with the published table and by default, in points."""
    truth = load_annotations(data / "coco2014_objects.jsonl.gz")
    largest = {data / "coco_synonyms.json": 0.0, None: 0.0}
    captions = 0
    for model, official in OFFICIAL.items():
        for table in largest:
            result = chair(data / f"captions_{model}_greedy.jsonl", truth, synonyms=table)
            ours = (result["chair_s"], result["chair_i"], result["recall"])
            differences = [abs(one - other) for one, other in zip(ours, official, strict=True)]
            largest[table] = max(largest[table], *differences)
        captions += result.facts["captions"]
    return captions, *largest.values()


def pope_difference(data: Path) -> tuple[int, float]:
    """The questions, and the largest difference to a plain reading of POPE's script, in points."""
    draw = random.Random(0)
    _, questions = read_pope(sorted(data.glob("*random.jsonl")), data)
    said = {split: {one.question_id: draw.choice(SAID) for one in asked} for split, asked in questions.items()}
    answers = {split: [Answer(id, None, None, text) for id, text in texts.items()] for split, texts in said.items()}
    result = pope(answers, questions)
    largest = 0.0
    for split, asked in questions.items():
        official = by_script([said[split][one.question_id] for one in asked], [one.label for one in asked])
        largest = max(largest, *(abs(result[f"{split}.{name}"] - value) for name, value in official.items()))
    return sum(map(len, questions.values())), largest


def by_script(texts: list[str], labels: list[str]) -> dict[str, float]:
    """The steps of POPE's evaluate.py, in percent."""
    words = [text.split(".")[0].replace(",", "").split(" ") for text in texts]
    said = ["no" if {"No", "not", "no"} & set(each) else "yes" for each in words]
    pairs = list(zip(said, labels, strict=True))
    tp, fp, fn = (pairs.count(pair) for pair in (("yes", "yes"), ("yes", "no"), ("no", "yes")))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": 100 * sum(one == other for one, other in pairs) / len(pairs),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "f1": 200 * precision * recall / (precision + recall),
        "yes_ratio": 100 * said.count("yes") / len(said),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    captions, official, default = chair_differences(data / "chair")
    questions, difference = pope_difference(data / "pope")
    page = PAGE.format(captions=captions, chair=official, default=default, questions=questions, pope=difference)
    (Path(__file__).parents[1] / "docs" / "fidelity.md").write_text(page)


if __name__ == "__main__":
    main()
