"""POPE: existence questions on COCO in three splits, by how the absent objects were chosen (Li et al. 2023).

RePOPE (Neuhaus and Hein 2025) labels them anew and leaves out those that are unclear.
"""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

from mfpo.errors import MfpoError
from mfpo.evaluate.answers import TEXT_KEYS, Answer, is_another, plain, read_answer_rows
from mfpo.evaluate.benchmark import AllowMissing, PlainResult, Result, benchmark
from mfpo.evaluate.existence import (
    YesNoQuestion,
    asked_of,
    existence,
    load_questions,
    read_as_pope,
    read_existence_answers,
)
from mfpo.files import some

SPLITS = ("random", "popular", "adversarial")
# In each split, numbered from 1.
_QUESTIONS = 3000


@dataclass(frozen=True)
class Split:
    """One split's figures as the official script reads the answers, and as `read_yes_no` does.

    `left_out` counts the answers to POPE's questions that RePOPE has not.
    """

    official: PlainResult
    tolerant: PlainResult
    left_out: int = 0


@dataclass(frozen=True, kw_only=True)
class Pope(Result):
    """The official figures, as "popular.f1", and both readings of each split; `asked` counts each split's questions."""

    splits: Mapping[str, Split]
    asked: Mapping[str, int]

    def json(self) -> dict[str, Any]:
        """By split, official figures with intervals, counts, and the figures where unreadable answers are wrong."""
        return {
            split: _split_json(self.splits[split]) if split in self.splits else {"questions": 0, "missing": count}
            for split, count in self.asked.items()
        }


@benchmark("pope")
def pope(
    answers: Path | Sequence[Path] | Mapping[str, Sequence[Answer]],
    annotations: Path | Mapping[str, Sequence[YesNoQuestion]],
    *,
    allow_missing: AllowMissing = False,
) -> Pope:
    """POPE in its three splits (Li et al. 2023).

    The answers are one file per split, with the split in its name, their folder, or a single file. The annotations are
    the folder of POPE's question files, or of RePOPE's, with "repope" in their names, for the answers to POPE.

    Example: mfpo eval pope answers/ --annotations pope --json pope.json

    In memory, answers and questions are by split, and the script is POPE's. Raises MfpoError as `read_pope` and
    `existence` do, and when a split has answers but no questions, or no answers; `allow_missing` lets the latter pass.
    """
    score = _score
    if isinstance(annotations, Path):
        assert not isinstance(answers, Mapping)
        score = _score_relabelled if _is_repope(annotations) else _score
        answers, annotations = read_pope([answers] if isinstance(answers, Path) else answers, annotations)
    assert isinstance(answers, Mapping)
    strange = [split for split in answers if split not in annotations]
    if strange:
        raise MfpoError(
            f"there are answers to the split {some(strange)}, but no questions; give them with --annotations"
        )
    missing = [split for split in annotations if split not in answers]
    if missing and not allow_missing:
        raise MfpoError(
            f"there are no answers to the split {some(missing)}; give them, or score the others with allow_missing=true"
        )
    splits = {}
    for split, split_answers in answers.items():
        splits[split] = score(split_answers, annotations[split], f"POPE's split {split}", allow_missing)
    tallies = {
        f"{split}.{figure}": tally
        for split, scored in splits.items()
        for figure, tally in scored.official.tallies.items()
    }
    return Pope(tallies, splits=splits, asked={split: len(questions) for split, questions in annotations.items()})


def _score(answers: Sequence[Answer], questions: Sequence[YesNoQuestion], name: str, allow_missing: bool) -> Split:
    score = partial(existence, answers, questions, allow_missing=allow_missing, name=name)
    return Split(score(read=read_as_pope), score())


def _score_relabelled(
    answers: Sequence[Answer], questions: Sequence[YesNoQuestion], name: str, allow_missing: bool
) -> Split:
    """The figures of RePOPE's script, which leaves out the answers that it cannot read.

    The labels that answers bring are POPE's.
    """
    left_out = {str(number) for number in range(1, _QUESTIONS + 1)}.difference(
        question.question_id for question in questions
    )
    repope_answers = [replace(answer, label=None) for answer in answers if answer.question_id not in left_out]
    tolerant = existence(repope_answers, questions, allow_missing=allow_missing, name=name)
    readable = [answer for answer in repope_answers if not answer.failed and read_as_repope(answer.text)]
    if not readable:
        raise MfpoError(f"no answer to {name} has yes or no in it, and RePOPE's script leaves out all others")
    official = existence(readable, questions, read=read_as_repope, allow_missing=True, name=name)
    facts = {**official.facts, "missing": tolerant.facts["missing"]}
    return Split(replace(official, facts=facts), tolerant, len(answers) - len(repope_answers))


def _is_repope(annotations: Path) -> bool:
    """Whether the questions are RePOPE's: its files, or their folder, are called so."""
    return any("repope" in f"{file.parent.name} {file.name}".lower() for file in _files([annotations]))


def read_as_repope(text: str) -> str | None:
    """What an answer says for RePOPE's script: letters that it holds, "yes" before "no"; None where it has neither.

    >>> [read_as_repope(text) for text in ("No, as I said yesterday.", "A snowboard.", "NO", "There isn't")]
    ['yes', 'no', 'no', None]
    """
    return next((word for word in ("yes", "no") if word in text.lower()), None)


def read_pope(
    answers: Sequence[Path], annotations: Path
) -> tuple[dict[str, list[Answer]], dict[str, list[YesNoQuestion]]]:
    """Answers and questions by split, from a file a split or their folders; one file may hold all answers (`by_split`).

    Raises MfpoError as `split_files` and `by_split` do.
    """
    questions = {split: load_questions(file) for split, file in split_files([annotations]).items()}
    files = _files(answers)
    if len(files) == 1 and not _splits_of(files[0]):
        rows = read_answer_rows(files[0], by_place=True, keys=(*TEXT_KEYS, "answer"))
        answers_to_all, named = [answer for answer, _ in rows], [_splits_in(row) for _, row in rows]
        if all(named):
            if _is_repope(annotations):
                raise MfpoError(
                    f"{files[0]}: VLMEvalKit's answers are matched by a question's text and label, and RePOPE changes "
                    "the label; give POPE's questions with --annotations, or one file per split with POPE's question_id"
                )
            return by_category(answers_to_all, named, questions, files[0]), questions
        return by_split(answers_to_all, questions, files[0]), questions
    files_by_split = split_files(files)
    return {
        split: read_existence_answers(file, questions.get(split, [])) for split, file in files_by_split.items()
    }, questions


def _splits_in(row: Mapping[str, Any]) -> list[str]:
    """The splits that VLMEvalKit names in `category`: "adversarial,popular"."""
    named = str(row.get("category")).split(",")
    return named if set(named) <= set(SPLITS) else []


def by_category(
    answers: Sequence[Answer],
    named: Sequence[Sequence[str]],
    questions: Mapping[str, Sequence[YesNoQuestion]],
    path: Path,
) -> dict[str, list[Answer]]:
    """The answers by the splits that are `named` for each, with the ids of POPE's questions.

    VLMEvalKit's rows may have no image. But all figures of a split depend on labels and answers alone, so an answer may
    have the id of any question with its words and label. Raises MfpoError when there is no such question left.
    """
    answers_by_split: dict[str, list[Answer]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        ids: defaultdict[tuple[str, str], deque[str]] = defaultdict(deque)
        for question in questions.get(split, ()):
            ids[plain(question.text).partition("?")[0], question.label].append(question.question_id)
        for answer in (answer for answer, splits in zip(answers, named, strict=True) if split in splits):
            same = ids[plain(answer.prompt or "").partition("?")[0], str(answer.label)]
            if not same:
                raise MfpoError(
                    f"{path}: question {answer.question_id} matches none of POPE's split {split} by text and label; "
                    "give VLMEvalKit's answers to POPE, and POPE's questions with --annotations"
                )
            answers_by_split[split].append(replace(answer, question_id=same.popleft(), image_id=None))
    return {split: split_answers for split, split_answers in answers_by_split.items() if split_answers}


def by_split(
    answers: Sequence[Answer], questions: Mapping[str, Sequence[YesNoQuestion]], path: Path
) -> dict[str, list[Answer]]:
    """The answers to all questions in one file, as LLaVA has them: one split after the other, in any order of splits.

    They get the ids of POPE's questions. Raises MfpoError when images and prompts fit no order of splits, or several.
    """
    fits = []
    for order in permutations(questions):
        asked = [(split, question) for split in order for question in questions[split]]
        if len(asked) == len(answers) and not any(
            is_another(answer, asked_of(question)) for answer, (_, question) in zip(answers, asked, strict=True)
        ):
            fits.append(asked)
    if len(fits) != 1:
        raise MfpoError(
            f"{path}: its name contains none of {', '.join(SPLITS)}, and its {len(answers)} rows do not match, by "
            f"image and prompt, all questions of one split after another; give one file per split, named after it"
        )
    answers_by_split: dict[str, list[Answer]] = {split: [] for split in questions}
    for answer, (split, question) in zip(answers, fits[0], strict=True):
        answers_by_split[split].append(replace(answer, question_id=question.question_id))
    return answers_by_split


def split_files(paths: Sequence[Path]) -> dict[str, Path]:
    """The file of each split, among files and those in folders, by its name: "answers_popular.jsonl".

    Raises MfpoError when a file is absent, its name tells no split or several, or when a split has two files.
    """
    files_by_split: dict[str, Path] = {}
    for file in _files(paths):
        named = _splits_of(file)
        if len(named) != 1:
            raise MfpoError(f"{file}: its name must contain exactly one of {', '.join(SPLITS)}; rename it")
        if named[0] in files_by_split:
            raise MfpoError(f"{file} and {files_by_split[named[0]]} are both the split {named[0]}; give one of them")
        files_by_split[named[0]] = file
    return {split: files_by_split[split] for split in SPLITS if split in files_by_split}


def _splits_of(file: Path) -> list[str]:
    """The splits in a file's name; lmms-eval's tasks are pope_adv, pope_pop and pope_random."""
    return [split for split in SPLITS if split in file.name or f"pope_{split[:3]}." in file.name]


def _files(paths: Sequence[str | Path]) -> list[Path]:
    files = [file for path in map(Path, paths) for file in (_in_folder(path) if path.is_dir() else [path])]
    if not files:
        raise MfpoError(
            f"no .jsonl file in {', '.join(map(str, paths))}, and no .json file with a split in its name; "
            f"give a file for each of {', '.join(SPLITS)}"
        )
    for file in files:
        if not file.exists():
            raise MfpoError(f"{file}: no such file or folder; give an existing one")
    return files


def _in_folder(folder: Path) -> list[Path]:
    """The JSONL files, and .json files that a split names, but for those that are there as JSONL, too.

    Other .json files are no answers or questions, but made from them.
    """
    files = sorted(folder.glob("*.jsonl")) + sorted(folder.glob("*.jsonl.gz"))
    stems = {file.name.partition(".jsonl")[0] for file in files}
    candidates = sorted(folder.glob("*.json")) + sorted(folder.glob("*.json.gz"))
    jsons = [
        file
        for file in candidates
        # "random.jsonl.made_by.json" is the note of a killed `mfpo answer`.
        if file.name.partition(".json")[0] not in stems
        and ".jsonl" not in file.suffixes
        and any(split in file.name for split in SPLITS)
    ]
    return files + jsons


def _split_json(split: Split) -> dict[str, Any]:
    figures, tolerant = (
        {name: asdict(figure) for name, figure in result.figures.items()} for result in (split.official, split.tolerant)
    )
    facts = {name: fact for name, fact in split.official.facts.items() if name != "unreadable"}
    facts |= {"left_out": split.left_out} if split.left_out else {}
    return figures | facts | {"unreadable": split.tolerant.facts["unreadable"], "tolerant": tolerant}
