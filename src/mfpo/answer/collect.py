"""Write answers as they arrive, so that a killed run resumes where it stopped."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from rich.progress import track

from mfpo.errors import MfpoError
from mfpo.files import read_rows
from mfpo.folders import lock, write_text

if TYPE_CHECKING:
    from mfpo.answer.questions import Question

# A line of a file of answers.
Answer = dict[str, Any]


class Engine(NamedTuple):
    """The model to ask, and how.

    `made_by` has `model`, `decode`, and what else the answers depend on. `ask` gives, in any order, each question with
    its `text`, or with `text` None and the `error`.
    """

    made_by: Mapping[str, Any]
    ask: Callable[[Sequence["Question"]], Iterable[tuple["Question", dict[str, Any]]]]


def check_out(out: Path, *, retry_failed: bool = False) -> None:
    """Raise MfpoError when `out` is there already, or, to ask failed questions again, is not."""
    if out.exists() and not retry_failed:
        failed = sum("error" in row for _, row in read_rows(out)) if out.is_file() else 0
        if failed:
            raise MfpoError(f"{out}: {failed} questions failed; --retry-failed asks them again, or give another --out")
        raise MfpoError(f"{out} exists already; give another --out or remove it")
    if retry_failed and not out.exists():
        raise MfpoError(f"{out} does not exist, so nothing can be asked again; leave out --retry-failed")


def collect(
    questions: Sequence["Question"], engine: Engine, out: Path | None = None, *, retry_failed: bool = False
) -> list[Answer]:
    """Ask the questions; return the answers in the questions' order, and also write them to `out`.

    An answer is `question_id, image, prompt, text, model, decode`, and `label` and `error` where there is one. Answers
    of a killed run with the same questions and `made_by` are reused. `retry_failed` keeps the answers in
    `out` and asks the questions that have an error there. Raises MfpoError as `check_out`, when answers in `out` are
    not to these questions, and when another run is writing them.
    """
    lines = {question["question_id"]: _line(question, engine.made_by) for question in questions}
    if out is None:
        answered = {line["question_id"]: line for line in _ask(questions, engine, lines)}
        return [answered[name] for name in lines]
    partial = out.with_name(out.name + ".partial")
    note = out.with_name(out.name + ".made_by.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    with note.open("a+", encoding="utf-8") as held:
        lock(held.fileno(), out)
        try:
            # Another run may have ended since `out` was last checked, before the model was loaded.
            check_out(out, retry_failed=retry_failed)
            before = _old_answers(out, lines) if retry_failed else []
        except MfpoError:
            if not os.fstat(held.fileno()).st_size:  # no note of a killed run
                note.unlink(missing_ok=True)
            raise
        _begin(held, json.dumps({"questions": list(lines.values()), **engine.made_by}), partial, before)
        # What failed in a killed run is asked again, too.
        answered = {line["question_id"]: line for line in _whole_lines(partial) if "error" not in line}
        _write(partial, answered.values())
        left = [question for question in questions if question["question_id"] not in answered]
        with partial.open("a", encoding="utf-8") as file:
            for line in _ask(left, engine, lines):
                answered[line["question_id"]] = line
                file.write(_dumps(line))
                file.flush()
        answers = [answered[name] for name in lines]
        _write(partial, answers)
        os.replace(partial, out)
        note.unlink()
    return answers


def _ask(questions: Sequence["Question"], engine: Engine, lines: Mapping[str, Answer]) -> Iterator[Answer]:
    """Yield the answers as they arrive, behind a progress bar."""
    count = len(questions)
    for question, reply in track(engine.ask(questions), f"answering {count} questions", count, disable=not count):
        yield lines[question["question_id"]] | reply


def _begin(note: IO[str], made_by: str, partial: Path, before: Sequence[Answer]) -> None:
    """Leave `partial` as it is if its note says that the same run wrote it; else it holds the answers of `before`."""
    note.seek(0)
    if note.read() != made_by or not partial.exists():
        # Written in place, since the note is what is locked, and last, in case that this run is killed here.
        note.truncate(0)
        _write(partial, before)
        note.write(made_by)
        note.flush()


def _line(question: "Question", made_by: Mapping[str, Any]) -> Answer:
    image = question.get("name", question["image"])
    line: Answer = {"question_id": question["question_id"], "image": image, "prompt": question["text"]}
    line |= {"text": None, "model": made_by["model"], "decode": made_by["decode"]}
    return line | ({"label": question["label"]} if "label" in question else {})


def _old_answers(out: Path, lines: Mapping[str, Answer]) -> list[Answer]:
    """The rows of `out` without an error, once it is sure that they answer the same questions in the same way."""
    rows = []
    for where, row in read_rows(out):
        asked = {key: value for key, value in row.items() if key not in ("text", "error")}
        if asked != {key: value for key, value in lines.get(str(row.get("question_id")), {}).items() if key != "text"}:
            raise MfpoError(
                f"{where}: is not an answer to one of these questions by this model with these settings; give the "
                "questions, model and settings that made the file"
            )
        rows.append(row)
    return [row for row in rows if "error" not in row]


def _whole_lines(path: Path) -> Iterator[Answer]:
    # What follows the last line end was broken off, perhaps within a letter, when the run was killed. Not splitlines(),
    # which on a text also cuts where a model wrote one of Unicode's other line ends.
    yield from map(json.loads, path.read_bytes().split(b"\n")[:-1])


def _write(path: Path, lines: Iterable[Answer]) -> None:
    write_text(path, "".join(map(_dumps, lines)))


def _dumps(line: Answer) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
