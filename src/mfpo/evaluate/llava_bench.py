"""LLaVA-Bench (COCO): 90 questions, each answer scored against GPT-4's by a judge (Liu et al. 2023, section 5.1).

The figure is the model's mean score in percent of the reference's. The judge sees captions and boxes, not the image.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from mfpo.answer.judge import Judge, Verdict
from mfpo.answer.replies import without_thoughts
from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer, Asked, check_asked, judged_counts, read_answers
from mfpo.evaluate.benchmark import AllowMissing, Result, benchmark
from mfpo.evaluate.figures import Tally, figure_of, share
from mfpo.files import read_field, read_json, read_rows, read_text, read_texts, some
from mfpo.settings import about

CATEGORIES = ("conv", "detail", "complex")
# The system message and the rules of the three categories in RLHF-V's evaluation.
_OFFICIAL = "3be7bce31adacb42b1d182d4a6260487ba92be9f05f906ffc917817cdc29ee9f"
# What may stand between and around two scores, and gives way to blanks: marks, bullets, "and", "/10".
_MARKS = re.compile(
    r"\\(?:boxed|text)\b|^[ \t]*[-+•][ \t]|[*_`#$|,;(\[\]{}]|\s?/\s?10\b|\b(?:out of 10|points?|and|vs\.?)(?!\w)",
    re.IGNORECASE | re.MULTILINE,
)
# "1. 8" names whose score it is, as "Assistant 1: 8" does.
_LIST_NUMBER = re.compile(r"^\s*([12])[.):](?=\s)", re.MULTILINE)
_NAMED = r"(?:(?:assistant|answer|response|model|score)\s*{}\b\s*(?:[:=]|[-–]\s)?\s*)+"
_SCORE = r"(\d+(?:\.\d+)?)"
_SCORES = re.compile(
    rf"\s*(?:scores\s*\)?:?|score\s*:)?\s*"
    rf"(?:{_NAMED.format(1)}{_SCORE}\s+{_NAMED.format(2)}{_SCORE}|{_SCORE}\s+{_SCORE})[ .)]*(?:\n|$)",
    re.IGNORECASE,
)
# Our own wording; the official one is given by the user.
SYSTEM = "You compare the answers of two assistants carefully and score them fairly."


_ORDERS = ("reference first", "model first")


@dataclass(frozen=True)
class LlavaQuestion:
    """A question, GPT-4's answer to it, and what the judge is told of the image."""

    image: str
    category: str
    text: str
    reference: str
    context: str


@dataclass(frozen=True)
class Rule:
    """What the judge is asked in a category, and what it calls the two answers ("Assistant")."""

    role: str
    prompt: str


@dataclass(frozen=True)
class LlavaData:
    """The questions by id and the rules by category."""

    questions: Mapping[str, LlavaQuestion]
    rules: Mapping[str, Rule]


@dataclass(frozen=True)
class Scores:
    """The scores of one question, each a mean over the orders; None where a verdict cannot be read."""

    model: float | None
    reference: float | None
    replies: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LlavaBench(Result):
    """The scores by question id, by the official rule and by the tolerant one, in the order or orders asked for."""

    scores: Mapping[str, Scores]
    tolerant: Mapping[str, Scores]
    categories: Mapping[str, str]
    official: Mapping[str, bool]
    judge: Mapping[str, Any]

    def json(self) -> dict[str, Any]:
        """The figures by the official rule, by the tolerant one too where that reads more or another, and the counts.

        Raises MfpoError when no verdict could be read by either.
        """
        unreadable = _unreadable(self.tolerant)
        if len(self.left_out) == len(unreadable) == len(self.scores):
            reply = next((reply for each in self.scores.values() for reply in each.replies), "")
            raise MfpoError(
                f"none of the {len(unreadable)} verdicts of {self.judge['model']} can be read ({reply[:80]!r}); "
                "use a judge that writes the two scores on the first line, as the rule asks"
            )
        more = {"tolerant": _figures(_tallies(self.tolerant, self.categories)) | {"unreadable": len(unreadable)}}
        return {
            **self.official,
            **_figures(self.tallies),
            **self.facts,
            **(more if self.tolerant != self.scores else {}),
            "judge": self.judge,
            "details": list(self.details),
        }


@benchmark("llava-bench")
def llava_bench(
    answers: Path | Sequence[Answer],
    annotations: Path | LlavaData,
    *,
    judge: Judge,
    official: Annotated[bool, about("ask in one order only, like the official script")] = False,
    system: Annotated[Path | None, about("text of the judge's system message; docs/judges.md")] = None,
    allow_missing: AllowMissing = False,
) -> LlavaBench:
    """LLaVA-Bench (COCO): a judge scores each answer against GPT-4's, in both orders (Liu et al. 2023).

    The annotations are its folder.

    Example: mfpo eval llava-bench answers.jsonl --annotations llava_bench --judge gpt-4-0613

    Temperature 0.2 and 180 tokens, as in RLHF-V's evaluation; `official` asks only with the reference first. Raises
    MfpoError when ids are unknown or double, when an answer is to another question, when answers are missing
    (`allow_missing` counts them instead), and when the judge fails for good.
    """
    data = load_llava_bench(annotations) if isinstance(annotations, Path) else annotations
    if isinstance(answers, Path):
        answers = read_answers(answers)
    message, questions = read_text(system).strip() if system else SYSTEM, data.questions
    asked = {name: Asked(question.text, (question.image,)) for name, question in questions.items()}
    answers_by_id = check_asked(answers, asked, "LLaVA-Bench (COCO)", allow_missing=allow_missing)
    orders = _ORDERS[:1] if official else _ORDERS
    prompts = {
        f"{name} ({order})": [{"role": "system", "content": message}, {"role": "user", "content": content}]
        for name, answer in answers_by_id.items()
        for order, content in zip(orders, _contents(data, questions[name], answer.text), strict=False)
    }
    verdicts = judge.ask(prompts, read_scores, temperature=0.2, max_tokens=180)
    by_order = {name: [verdicts[f"{name} ({order})"] for order in orders] for name in answers_by_id}
    scores = {name: _scores(each) for name, each in by_order.items()}
    categories = {name: question.category for name, question in questions.items()}
    unreadable = _unreadable(scores)
    return LlavaBench(
        _tallies(scores, categories),
        facts=judged_counts(answers_by_id, len(questions), unreadable),
        details=[
            {"question_id": name, "category": categories[name]} | asdict(each) | {"replies": list(each.replies)}
            for name, each in scores.items()
        ],
        left_out=unreadable,
        scores=scores,
        tolerant={name: _scores([_read_tolerantly(verdict) for verdict in each]) for name, each in by_order.items()},
        categories=categories,
        official={"official_order": official, "official_prompt": _hash(message, data.rules) == _OFFICIAL},
        judge=judge.report(),
    )


def read_scores(reply: str) -> tuple[float, float] | None:
    """The two scores, from 0 to 10, that are the whole first line of a reply.

    >>> read_scores("8 9.5\\nBoth are good."), read_scores("8, 9"), read_scores("Assistant 1: 8, Assistant 2: 9")
    ((8.0, 9.5), (8.0, 9.0), None)
    """
    words = reply.strip().partition("\n")[0].replace(",", " ").split()
    try:
        first, second = map(float, words)
    except ValueError:
        return None
    return (first, second) if 0 <= first <= 10 and 0 <= second <= 10 else None


def read_scores_tolerantly(reply: str) -> tuple[float, float] | None:
    """The two scores that a reply begins with, also if they are marked, named, numbered, or given out of 10.

    >>> read_scores_tolerantly("**8/10** **9/10**"), read_scores_tolerantly("Assistant 1: 8\\nAssistant 2: 9")
    ((8.0, 9.0), (8.0, 9.0))
    """
    cleaned = _LIST_NUMBER.sub(r"assistant \1:", _MARKS.sub(" ", reply))
    if match := _SCORES.match(cleaned):
        return read_scores(" ".join(filter(None, match.groups())))
    # Officially a list number is a score.
    return None if cleaned.startswith("assistant") else read_scores(reply)


def load_llava_bench(folder: Path) -> LlavaData:
    """Read the benchmark's own files: questions, GPT-4's answers, captions and boxes, and the judge's rules.

    Raises MfpoError when one is absent, of another form, or does not go with the others.
    """
    questions = _rows(folder, "qa90_questions.jsonl")
    references = {str(row.get("question_id")): row for row in _rows(folder, "qa90_gpt4_answer.jsonl")}
    contexts = {str(row.get("image")): row for row in _rows(folder, "caps_boxes_*.jsonl")}
    rules = read_json(folder / "rule.json")
    try:
        data = LlavaData(
            {
                str(row["question_id"]): LlavaQuestion(
                    read_field(row, "image"),
                    read_field(row, "category"),
                    read_field(row, "text"),
                    read_field(references[str(row["question_id"])], "text"),
                    _context(contexts[row["image"]]),
                )
                for row in questions
            },
            {name: Rule(read_field(rules[name], "role"), read_field(rules[name], "prompt")) for name in CATEGORIES},
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise MfpoError(
            f"{folder}: its files are not LLaVA-Bench's, or are from different versions ({repr(error)[:80]})"
        ) from None
    strange = sorted({question.category for question in data.questions.values()}.difference(CATEGORIES))
    if strange:
        raise MfpoError(f"{folder}: unknown category {some(strange)}; LLaVA-Bench (COCO) has {', '.join(CATEGORIES)}")
    return data


def _rows(folder: Path, pattern: str) -> list[dict[str, Any]]:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise MfpoError(f"{folder}: holds {len(files)} files {pattern}, not one; give LLaVA-Bench's folder")
    return [row for _, row in read_rows(files[0])]


def _context(row: Mapping[str, Any]) -> str:
    boxes = [f"{instance['category']}: {instance['bbox']}" for instance in row["instances"]]
    return "\n".join(read_texts(row, "captions")) + "\n\n" + "\n".join(boxes)


def _contents(data: LlavaData, question: LlavaQuestion, answer: str) -> tuple[str, str]:
    """The judge's message in each of the orders."""
    rule = data.rules[question.category]
    return _content(question, rule, question.reference, answer), _content(question, rule, answer, question.reference)


def _content(question: LlavaQuestion, rule: Rule, first: str, second: str) -> str:
    """The judge's message, with its marks as LLaVA's script sets them."""
    parts = [f"[Context]\n{question.context}", f"[Question]\n{question.text}"]
    for number, text in enumerate((first, second), start=1):
        parts += [f"[{rule.role} {number}]\n{text}", f"[End of {rule.role} {number}]"]
    return "\n\n".join([*parts, f"[System]\n{rule.prompt}", ""])


def _unreadable(scores: Mapping[str, Scores]) -> list[str]:
    """The questions with a verdict that cannot be read."""
    return [name for name, each in scores.items() if each.model is None]


def _tallies(scores: Mapping[str, Scores], categories: Mapping[str, str]) -> dict[str, Tally]:
    """What the figures are made of, "overall" first; as officially, without the questions left unread."""
    read = {
        name: (each.model, each.reference)
        for name, each in scores.items()
        if each.model is not None and each.reference is not None
    }
    by_category = {kind: {name: pair for name, pair in read.items() if categories[name] == kind} for kind in CATEGORIES}
    groups = {"overall": read, **by_category}
    return {name: Tally(units, share) for name, units in groups.items() if units}


def _figures(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """The relative scores in percent with intervals, and the mean scores of model and reference behind them."""
    figures: dict[str, Any] = {}
    for name, tally in tallies.items():
        sums = [sum(scores) for scores in zip(*tally.units.values(), strict=True)]
        means = dict(zip(("model", "reference"), (total / len(tally.units) for total in sums), strict=True))
        figures[name] = asdict(figure_of(tally)) | means
    return figures


def _read_tolerantly(verdict: Verdict[tuple[float, float]]) -> Verdict[tuple[float, float]]:
    """The verdict with what the tolerant rule reads, where the official rule does or in the first reply that it can."""
    texts = [without_thoughts(reply) for reply in verdict.replies]
    readings = map(read_scores_tolerantly, [text for text in texts if read_scores(text)] or texts)
    return replace(verdict, reading=next(filter(None, readings), None))


def _scores(verdicts: Sequence[Verdict[tuple[float, float]]]) -> Scores:
    """The mean scores over the orders; one order alone would bring its position's bias in."""
    # A prompt that the endpoint refuses has no reply.
    replies = tuple(verdict.replies[-1] for verdict in verdicts if verdict.replies)
    readings = [verdict.reading for verdict in verdicts if verdict.reading]
    if len(readings) < len(verdicts):
        return Scores(None, None, replies)
    # In the first order the reference stands first, in the second the model.
    scores = [readings[0][::-1], *readings[1:]]
    model, reference = (sum(column) / len(scores) for column in zip(*scores, strict=True))
    return Scores(model, reference, replies)


def _hash(system: str, rules: Mapping[str, Rule]) -> str:
    texts = [system.strip(), *(text for name in CATEGORIES for text in (rules[name].role, rules[name].prompt))]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
