"""HallusionBench: yes/no questions on figures, their edited copies and no figure at all (Guan et al. 2024).

The figures are those of the official script (github.com/tianyi-lab/HallusionBench, evaluation.py).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from mfpo.answer.hallusion import hallusion_id
from mfpo.answer.judge import Judge, Template, read_template
from mfpo.answer.replies import begins_with
from mfpo.errors import MfpoError
from mfpo.evaluate.answers import TEXT_KEYS, Answer, Asked, check_asked, read_answer_rows, thinking
from mfpo.evaluate.benchmark import AllowMissing, Result, benchmark
from mfpo.evaluate.existence import read_yes_no
from mfpo.evaluate.figures import Tally, mean
from mfpo.files import read_rows
from mfpo.settings import about

# What an answer is, as the script numbers it.
WRONG, RIGHT, UNCERTAIN = range(3)

_UNCERTAIN = re.compile(
    r"\b(?:can ?not|could not|(?:can|could)n?['’]t|do not|don['’]t|unable to|not able to|(?:impossible|not possible) to"
    r"|difficult to|hard to)\s+(?:\w+ly\s+)?"
    r"(?:tell|say|know|determine|answer|judge|verify|confirm|assess|conclude|decide)\b"
    r"|\b(?:not|no|n['’]t|without)\s+(?:\w+\s+){0,2}(?:enough|sufficient)\b"
    r"|\bnot\s+(?:\w+ly\s+)?(?:sure|certain|clear|known)\b|\b(?:unclear|uncertain|unsure|unknown|insufficient)\b",
    re.IGNORECASE,
)
_PLACES = ("question", "reference", "answer")
_SAME_PLACES = ("first", "second")
# Of the prompts in the script's utils.py, without outer blanks.
_OFFICIAL = "21bb81e23996c4d97f1eda2e573c5c624db63ad007b432074c6ff3da1ac325e4"
_OFFICIAL_SAME = "2f8503339d8576344fe3a113a2bd13a05132d6d22710294f97fd8c41c4985ddd"

# Our own wording of what the official prompts ask.
DEFAULT = Template(
    """A model answered a question about an image. Compare its answer with the reference.

Question: {question}
Reference: {reference}
Model's answer: {answer}

Reply with one word: "correct" if the answer agrees with the reference, "incorrect" if it contradicts it, or "unclear" \
if it does not decide the question.""",
    _PLACES,
)
DEFAULT_SAME = Template(
    """Here are two answers to one question about two images. Could both be true of one image?

First: {first}
Second: {second}

Reply with one word: "same" if they do not contradict each other, or "different" if they do.""",
    _SAME_PLACES,
)


@dataclass(frozen=True)
class HallusionQuestion:
    """A question: `category` is VD (of the figure) or VS (answerable without it); `figure` "0" is the original.

    `visual_input` is "0" without a figure, "1" with the original, "2" with an edited one.
    """

    id: str
    category: str
    pair: str
    figure: str
    visual_input: str
    text: str
    reference: str
    label: str

    @property
    def is_original(self) -> bool:
        """Whether the others of its pair are compared with it."""
        return self.id.split("_")[3] == "0"

    def is_correct(self, verdict: int) -> bool:
        """Without a figure, an uncertain answer is correct too."""
        return verdict == RIGHT or (verdict == UNCERTAIN and self.category == "VS" and self.is_original)


@benchmark("hallusionbench")
def hallusionbench(
    answers: Path | Sequence[Answer],
    annotations: Path | Sequence[HallusionQuestion],
    *,
    judge: Judge | None = None,
    template: Annotated[Path | None, about("text of the judge's prompt on an answer; docs/judges.md")] = None,
    same_template: Annotated[Path | None, about("text of its prompt on two answers; docs/judges.md")] = None,
    allow_missing: AllowMissing = False,
) -> Result:
    """HallusionBench: accuracy by question, pair and figure, and what the mistakes come from (Guan et al. 2024).

    The annotations are HallusionBench.json.

    Example: mfpo eval hallusionbench answers.jsonl --annotations HallusionBench.json --json hallusion.json

    Without a judge, answers are read as `read_hallusion` does; one that says neither is uncertain. Raises MfpoError
    when ids are unknown or double, when an answer is to another question, when answers are missing (`allow_missing`
    counts them instead), and when the judge fails for good.
    """
    questions = load_hallusionbench(annotations) if isinstance(annotations, Path) else annotations
    if isinstance(answers, Path):
        answers = read_hallusion_answers(answers)
    asked = {question.id: Asked(question.text) for question in questions}
    answers_by_id = check_asked(answers, asked, "HallusionBench", allow_missing=allow_missing)
    answer_texts = {question: answers_by_id[question.id].text for question in questions if question.id in answers_by_id}
    original = {question.pair: question for question in answer_texts if question.is_original}
    facts: dict[str, Any] = dict(thinking(answers_by_id.values()))
    if judge:
        prompts = read_template(template, _PLACES) if template else DEFAULT
        same_prompts = read_template(same_template, _SAME_PLACES) if same_template else DEFAULT_SAME
        verdicts, same = _judged(answer_texts, original, judge, prompts, same_prompts)
        facts["official_prompt"] = prompts.is_the_one(_OFFICIAL) and same_prompts.is_the_one(_OFFICIAL_SAME)
        facts["judge"] = judge.report()
    else:
        read = {question: read_hallusion(text) for question, text in answer_texts.items()}
        verdicts = {question: _verdict(reading, question.label) for question, reading in read.items()}
        same = {
            question for question in answer_texts if read[question] == read.get(original.get(question.pair, question))
        }
    if not verdicts:
        raise MfpoError("the judge refused to rate any answer; use another one")
    facts = {"answers": len(verdicts), "missing": len(questions) - len(verdicts)} | facts
    facts["uncertain"] = list(verdicts.values()).count(UNCERTAIN)
    details = [{"question_id": question.id, "verdict": verdict} for question, verdict in verdicts.items()]
    tallies = _tallies(verdicts) | _causes(verdicts, original, same)
    # Answers to a part of the questions leave some figures without any.
    return Result({name: tally for name, tally in tallies.items() if tally.units}, facts, details)


def read_hallusion(text: str) -> str | None:
    """What an answer says, as `read_yes_no`, but None where its first sentence says that it cannot be told.

    The script's judge calls such an answer unclear. "0" and "1" are the script's own words for no and yes.

    >>> [read_hallusion(text) for text in ("I cannot tell.", "I cannot see a dog.", "No, I'm not sure.", "1")]
    [None, 'no', 'no', 'yes']
    """
    if text.strip() in ("0", "1"):
        return "yes" if text.strip() == "1" else "no"
    sentence = re.split(r"[.!?\n]", text.strip(), maxsplit=1)[0]
    if begins_with(text) is None and _UNCERTAIN.search(sentence):
        return None
    return read_yes_no(text)


def load_hallusionbench(path: Path) -> list[HallusionQuestion]:
    """Read HallusionBench.json. Raises MfpoError when it is another file."""
    return [_question(row, where) for where, row in read_rows(path)]


def read_hallusion_answers(path: Path) -> list[Answer]:
    """Read answers: the question file with `model_prediction` filled in, or rows whose `question_id` is the script's
    name of a question, "VD_illusion_0_1_2" for category, subcategory, set, figure and question.
    """
    answers = []
    for answer, row in read_answer_rows(path, by_place=True, keys=(*TEXT_KEYS, "model_prediction")):
        name = hallusion_id(row) if "set_id" in row else _of_vlmevalkit(answer.question_id)
        # Each tool calls an image's file something else.
        answers.append(replace(answer, question_id=name, image_id=None))
    return answers


def _of_vlmevalkit(name: str | None) -> str | None:
    """VLMEvalKit has `visual_input` behind the subcategory, too."""
    parts = (name or "").split("_")
    return "_".join(parts[:2] + parts[3:]) if len(parts) == 6 else name


def _question(row: Mapping[str, Any], where: str) -> HallusionQuestion:
    texts = {key: row.get(key) for key in ("question", "gt_answer_details", "gt_answer", "visual_input")}
    if row.get("category") not in ("VD", "VS") or None in texts.values() or str(row["gt_answer"]) not in ("0", "1"):
        raise MfpoError(f"{where}: is not a question of HallusionBench; give HallusionBench.json")
    category, subcategory, set_id, figure, number = hallusion_id(row).split("_")
    return HallusionQuestion(
        hallusion_id(row),
        category,
        f"{category}_{subcategory}_{set_id}_{number}",
        f"{category}_{subcategory}_{set_id}_{figure}",
        str(texts["visual_input"]),
        str(texts["question"]),
        str(texts["gt_answer_details"]),
        "yes" if str(texts["gt_answer"]) == "1" else "no",
    )


def _verdict(reading: str | None, label: str) -> int:
    return UNCERTAIN if reading is None else RIGHT if reading == label else WRONG


def _judged(
    answer_texts: Mapping[HallusionQuestion, str],
    original: Mapping[str, HallusionQuestion],
    judge: Judge,
    template: Template,
    same_template: Template,
) -> tuple[dict[HallusionQuestion, int], set[HallusionQuestion]]:
    """The judge's verdicts, where it does not refuse one, and the answers that say the same as that on the original."""
    contents = {q.id: template.fill(q.text, q.reference, text) for q, text in answer_texts.items()}
    contents |= {
        f"{q.id} (same)": same_template.fill(text, answer_texts[original[q.pair]])
        for q, text in answer_texts.items()
        if q.pair in original and not q.is_original
    }
    prompts = {name: [{"role": "user", "content": content}] for name, content in contents.items()}
    replies = judge.ask(prompts, str.lower, temperature=1.0, max_tokens=512)
    texts = {name: verdict.reading or "" for name, verdict in replies.items() if verdict.fault is None}
    verdicts = {
        q: WRONG if "incorrect" in texts[q.id] else RIGHT if "correct" in texts[q.id] else UNCERTAIN
        for q in answer_texts
        if q.id in texts
    }
    return verdicts, {q for q in answer_texts if "same" in texts.get(f"{q.id} (same)", "")}


def _tallies(verdicts: Mapping[HallusionQuestion, int]) -> dict[str, Tally]:
    """The accuracies of all questions and of each category, consistency by figure, and the bias to yes."""
    correct = {question: question.is_correct(verdict) for question, verdict in verdicts.items()}
    tallies = _accuracies("", correct)
    for category in ("VD", "VS"):
        of_one = {question: right for question, right in correct.items() if question.category == category}
        tallies |= _accuracies(f"{category}.", of_one) if of_one else {}
    figures = _grouped((question.figure, right) for question, right in correct.items() if _has_figure(question))
    kinds = {"correct": all, "wrong": lambda rights: not any(rights)}
    for name, holds in kinds.items():
        tallies[f"consistency.{name}"] = Tally({figure: (holds(rights), 1) for figure, rights in figures.items()})
    mixed = {figure: (any(rights) and not all(rights), 1) for figure, rights in figures.items()}
    tallies["consistency.inconsistent"] = Tally(mixed)
    # As in the script, "yes" is said where right and label are the same number.
    yes = {q.id: ((right == (q.label == "yes")) - (q.label == "yes"), 1) for q, right in correct.items()}
    wrong = {q.id: (not right and q.label == "no", not right) for q, right in correct.items()}
    return tallies | {"yes_bias.difference": Tally(yes, mean), "yes_bias.false_positives": Tally(wrong, mean)}


def _accuracies(prefix: str, correct: Mapping[HallusionQuestion, bool]) -> dict[str, Tally]:
    """In percent; of pairs and figures, all questions must be right, as also of easy and hard ones of one pair."""
    easy = {question: right for question, right in correct.items() if question.visual_input != "2"}
    hard = {question: right for question, right in correct.items() if question.visual_input == "2"}
    groups = {
        "question_accuracy": _grouped((question.id, right) for question, right in correct.items()),
        "pair_accuracy": _grouped((question.pair, right) for question, right in correct.items()),
        "figure_accuracy": _grouped((q.figure, right) for q, right in correct.items() if _has_figure(q)),
        "easy_accuracy": _grouped((question.pair, right) for question, right in easy.items()),
        "hard_accuracy": _grouped((question.pair, right) for question, right in hard.items()),
    }
    return {
        f"{prefix}{name}": Tally({unit: (all(rights), 1) for unit, rights in group.items()})
        for name, group in groups.items()
        if group
    }


def _grouped(entries: Iterable[tuple[str, bool]]) -> dict[str, list[bool]]:
    groups = defaultdict(list)
    for name, right in entries:
        groups[name].append(right)
    return groups


def _has_figure(question: HallusionQuestion) -> bool:
    return not (question.category == "VS" and question.is_original)


def _causes(
    verdicts: Mapping[HallusionQuestion, int],
    original: Mapping[str, HallusionQuestion],
    same: set[HallusionQuestion],
) -> dict[str, Tally]:
    """The shares of mistakes by language hallucination, by visual illusion, and by both, in percent."""
    causes = {
        question.id: cause_of(question, verdict, verdicts[original[question.pair]], question in same)
        for question, verdict in verdicts.items()
        if original.get(question.pair) in verdicts
    }
    kinds = {"language_hallucination": (True, False), "visual_illusion": (False, True), "mixed": (True, True)}
    return {
        name: Tally({id: (cause == kind, any(cause)) for id, cause in causes.items()}) for name, kind in kinds.items()
    }


def cause_of(question: HallusionQuestion, verdict: int, original: int, same: bool) -> tuple[bool, bool]:
    """Whether an answer shows language hallucination and visual illusion (section 4 and the script's utils.py).

    `original` is the verdict on the original of its pair; `same`: both answers say the same.
    """
    if verdict == RIGHT or question.is_correct(verdict):
        return False, False
    if question.is_original:
        return question.category == "VS", question.category == "VD"
    if question.category == "VD":
        return original == RIGHT and verdict == WRONG and same, True
    if original == WRONG:
        return True, not (verdict == WRONG and same)
    if original == RIGHT and verdict == WRONG and question.visual_input == "2" and same:
        return True, False
    return False, True
