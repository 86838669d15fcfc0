"""POPE: existence questions on COCO in three splits, by how the absent objects were chosen (Li et al. 2023)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer, image_key, some
from mfpo.evaluate.existence import Existence, Question, existence, existence_tallies, labels_of, read_as_pope
from mfpo.evaluate.figures import Tally

SPLITS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Split:
    """One split's figures as POPE's script reads the answers, and as `read_yes_no` does."""

    official: Existence
    tolerant: Existence


def pope(
    answers: Mapping[str, Sequence[Answer]], questions: Mapping[str, Sequence[Question]], *, allow_missing: bool = False
) -> dict[str, Split]:
    """Score the answers of each split. Raises MfpoError as `existence`, and when they belong to other questions."""
    scored = {}
    for split, given in answers.items():
        labels = _labels(split, given, questions)
        official = existence(given, labels, read=read_as_pope, allow_missing=allow_missing)
        scored[split] = Split(official, existence(given, labels, allow_missing=allow_missing))
    return scored


def pope_tallies(
    answers: Mapping[str, Sequence[Answer]], questions: Mapping[str, Sequence[Question]], *, allow_missing: bool = False
) -> dict[str, Tally]:
    """What the official figures are made of, for comparisons, as "popular.f1"."""
    return {
        f"{split}.{name}": tally
        for split, given in answers.items()
        for name, tally in existence_tallies(
            given, _labels(split, given, questions), read=read_as_pope, allow_missing=allow_missing
        ).items()
    }


def pope_json(scored: Mapping[str, Split]) -> dict[str, Any]:
    """By split, the official figures with intervals, the counts, and the figures where unreadable answers are wrong."""
    return {
        split: _figures(score.official)
        | {"questions": score.official.questions, "missing": score.official.missing}
        | {"unreadable": score.tolerant.unreadable, "tolerant": _figures(score.tolerant)}
        for split, score in scored.items()
    }


def split_files(paths: Iterable[Path]) -> dict[str, Path]:
    """The file of each split, among files and the JSONL files of folders, by its name: "answers_popular.jsonl".

    Raises MfpoError when a file's name tells no split or several, or when a split has two files.
    """
    files = [file for path in paths for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    if not files:
        raise MfpoError(f"no .jsonl file there; give a file for each of {', '.join(SPLITS)}")
    found: dict[str, Path] = {}
    for file in files:
        named = [split for split in SPLITS if split in file.name]
        if len(named) != 1:
            raise MfpoError(f"{file}: its name must tell the split, which is one of {', '.join(SPLITS)}; rename it")
        if named[0] in found:
            raise MfpoError(f"{file} and {found[named[0]]} are both the split {named[0]}; give one of them")
        found[named[0]] = file
    return {split: found[split] for split in SPLITS if split in found}


def _labels(split: str, answers: Sequence[Answer], questions: Mapping[str, Sequence[Question]]) -> dict[str, str]:
    """The labels of a split's questions, once the answers are known to be to these."""
    if split not in questions:
        raise MfpoError(f"there are answers to the split {split}, but no questions; give its file with --annotations")
    asked = {question.question_id: question for question in questions[split]}
    wrong = [str(answer.question_id) for answer in answers if _is_another(answer, asked.get(str(answer.question_id)))]
    if wrong:
        raise MfpoError(
            f"{len(wrong)} of {len(answers)} answers to the split {split} have another image or prompt than its "
            f"question ({some(wrong)}); give answers to POPE's questions of this split"
        )
    return labels_of(questions[split])


def _is_another(answer: Answer, question: Question | None) -> bool:
    """The splits have the same ids, so that only image and prompt tell that an answer is to another question."""
    if question is None:
        return False
    other_image = answer.image_id is not None and image_key(answer.image_id) != image_key(question.image)
    return other_image or (answer.prompt is not None and question.text not in answer.prompt)


def _figures(score: Existence) -> dict[str, Any]:
    return {name: asdict(figure) for name, figure in score.intervals.items()}
