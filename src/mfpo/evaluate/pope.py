"""POPE: existence questions on COCO in three splits, by how the absent objects were chosen (Li et al. 2023)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer, some
from mfpo.evaluate.existence import Existence, Question, existence, read_as_pope
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
    """Score the answers of each split.

    Raises MfpoError as `existence` does, and when a split has answers but no questions, or no answers;
    `allow_missing` lets the latter pass.
    """
    strange = [split for split in answers if split not in questions]
    if strange:
        raise MfpoError(f"there are answers to the split {some(strange)}, but no questions; give them by --annotations")
    missing = [split for split in questions if split not in answers]
    if missing and not allow_missing:
        raise MfpoError(
            f"there are no answers to the split {some(missing)}; give them, or score the others with --allow-missing"
        )
    scored = {}
    for split, given in answers.items():
        score = partial(
            existence, given, questions[split], allow_missing=allow_missing, benchmark=f"POPE's split {split}"
        )
        scored[split] = Split(score(read=read_as_pope), score())
    return scored


def pope_tallies(scored: Mapping[str, Split]) -> dict[str, Tally]:
    """What the official figures are made of, for comparisons, as "popular.f1"."""
    return {
        f"{split}.{name}": tally for split, score in scored.items() for name, tally in score.official.tallies.items()
    }


def pope_json(scored: Mapping[str, Split], questions: Mapping[str, Sequence[Question]]) -> dict[str, Any]:
    """By split, the official figures with intervals, the counts, and the figures where unreadable answers are wrong."""
    return {
        split: _split_json(scored[split]) if split in scored else {"questions": 0, "missing": len(asked)}
        for split, asked in questions.items()
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


def _split_json(score: Split) -> dict[str, Any]:
    counts = {"questions": score.official.questions, "missing": score.official.missing}
    tolerant = {"unreadable": score.tolerant.unreadable, "tolerant": _figures(score.tolerant)}
    return _figures(score.official) | counts | tolerant


def _figures(score: Existence) -> dict[str, Any]:
    return {name: asdict(figure) for name, figure in score.intervals.items()}
