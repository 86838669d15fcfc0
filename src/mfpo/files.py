"""Text, JSON and JSONL files that a user gives, read whole, and what their rows hold."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mfpo.errors import MfpoError, brief

# What Python refuses to read though it is JSON.
TOO_LARGE = "holds a number of thousands of digits, or brackets within brackets without end; write plain JSON"


def read_json(path: Path) -> Any:
    """The value of a JSON file (`.gz` too). Raises MfpoError when the file is missing, unreadable or no JSON."""
    text = read_text(path)
    check_json(text, path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise MfpoError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); a file with one object a line is named .jsonl"
        ) from None
    except (ValueError, RecursionError):
        raise MfpoError(f"{path}: {TOO_LARGE}") from None


def check_json(text: str, path: Path) -> None:
    """Raise MfpoError for a file that is empty, or a page that a download brought instead of the data."""
    begins = text.lstrip()[:1]
    if not begins:
        raise MfpoError(f"{path}: is empty; give a file with JSON")
    if begins == "<":
        raise MfpoError(f"{path}: is a page of HTML or XML, not JSON; download the data itself")


def read_text(path: Path) -> str:
    """The text of a file (`.gz` too). Raises MfpoError when it is missing or no UTF-8."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except OSError as error:
        raise MfpoError(f"{path}: cannot be read ({error.strerror or error}); give an existing file") from None
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise MfpoError(f"{path}: cannot be read ({error}); give it as UTF-8 text, or whole if gzipped") from None


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, one a line or all in a list (`.gz` too), each with the words that say where it is.

    Raises MfpoError when the file is missing, unreadable or empty, or when a line or an entry is no JSON object.
    """
    text = read_text(path)
    check_json(text, path)
    if text.lstrip().startswith("["):
        yield from _entries(path)
        return
    # Not splitlines: a text may hold other line separators (U+2028), which JSON need not escape.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise MfpoError(f"{where}: not valid JSON ({error.msg}); write one JSON object a line") from None
        except (ValueError, RecursionError):
            raise MfpoError(f"{where}: {TOO_LARGE}") from None
        if not isinstance(row, dict):
            raise MfpoError(f"{where}: holds a {type(row).__name__}; write one JSON object a line")
        yield where, row


def read_id(row: dict[str, Any], keys: tuple[str, ...], where: str) -> str | None:
    """The first of `keys` that `row` has, as a text; ids may be texts or whole numbers, and null counts as absent.

    Raises MfpoError when it is anything else.
    """
    key = next((key for key in keys if row.get(key) is not None), None)
    if key is None:
        return None
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise MfpoError(f"{where}: {key} is {brief(value)}, but must be a text or a whole number")
    return str(value)


def read_label(row: dict[str, Any], where: str) -> str | None:
    """The true answer, "yes" or "no" in any case, or None. Raises MfpoError when it is anything else."""
    label = row.get("label")
    if label is None:
        return None
    if not isinstance(label, str) or label.lower() not in ("yes", "no"):
        raise MfpoError(f'{where}: label is {brief(label)}, but must be "yes" or "no"')
    return label.lower()


def read_field(row: Mapping[str, Any], key: str) -> str:
    """The text under `key`, in a benchmark's own file. Raises KeyError or TypeError when there is none."""
    value = row[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {repr(value)[:20]}, but must be a text")
    return value


def read_texts(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The list of texts under `key`, as `read_field`."""
    value = row[key]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{key} is {repr(value)[:20]}, but must be a list of texts")
    return tuple(value)


def some(names: Sequence[str]) -> str:
    """The first three of `names`, none longer than 80 letters, and how many more there are, for an error message."""
    return ", ".join(" ".join(name.split())[:80] for name in names[:3]) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    entries = read_json(path)
    if not entries:
        raise MfpoError(f"{path}: is an empty list; give a file with one JSON object an answer")
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict):
            raise MfpoError(f"{where}: is a {type(entry).__name__}; give one JSON object an answer")
        yield where, entry
