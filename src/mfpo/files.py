"""Read a user's text, JSON and JSONL files, and the fields of their rows."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from mfpo.errors import MfpoError, brief, first_line

# What may stand before JSON: a byte order mark, and white space.
_BLANK = b"\xef\xbb\xbf \t\r\n"
# What Python refuses to read though it is JSON.
TOO_LARGE = "holds a number with thousands of digits, or brackets nested too deeply; write plain JSON"


def read_json(path: Path) -> Any:
    """The value of a JSON file (`.gz` too). Raises MfpoError when the file is missing, unreadable or not JSON."""
    text = read_text(path)
    check_json(text, path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise MfpoError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); if it has one object per line, name it .jsonl"
        ) from None
    except (ValueError, RecursionError):
        raise MfpoError(f"{path}: {TOO_LARGE}") from None


def check_json(text: str, path: Path) -> None:
    """Raise MfpoError for a file that is empty, or an HTML page downloaded instead of the data."""
    begins = text.lstrip()[:1]
    if not begins:
        raise MfpoError(f"{path}: is empty; give a file with JSON")
    if begins == "<":
        raise MfpoError(f"{path}: is a page of HTML or XML, not JSON; download the data itself")


def read_text(path: Path) -> str:
    """The text of a file (`.gz` too). Raises MfpoError when it is missing, broken or not UTF-8."""
    with open_bytes(path) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MfpoError(f"{path}: cannot be read ({error}); give it as UTF-8 text") from None


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked where it is named `.gz`. Raises MfpoError when it is missing or broken."""
    open_file: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with open_file(path, "rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise MfpoError(f"{path}: cannot be read ({first_line(error)}); was it downloaded whole?") from None
    except OSError as error:
        raise MfpoError(f"{path}: cannot be read ({error.strerror or error}); give an existing file") from None


def beginning(path: Path) -> str:
    """How a file begins, behind white space and a byte order mark."""
    with open_bytes(path) as file:
        return file.read(1000).lstrip(_BLANK).decode(errors="replace")


class Entry(NamedTuple):
    """A line of a file, or an entry of the list in it: where it stands, and the object there or what it is instead."""

    place: str
    row: dict[str, Any] | None
    fault: str = ""


def stream_rows(path: Path) -> Iterator[Entry]:
    """What stands in a file, one object a line or all in a list (`.gz` too), whatever its name says.

    Lines stream, a list is read whole. Raises MfpoError when the file is missing or broken, or its list no JSON.
    """
    if beginning(path).startswith("["):
        for number, value in enumerate(read_json(path), start=1):
            yield _entry(f"entry {number}", value)
        return
    with open_bytes(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip(_BLANK):
                yield _parse(f"line {number}", line)


def _parse(place: str, line: bytes) -> Entry:
    try:
        return _entry(place, json.loads(line.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        return Entry(place, None, f"is not UTF-8 text ({error})")
    except json.JSONDecodeError as error:
        return Entry(place, None, f"is not valid JSON ({error.msg})")
    except (ValueError, RecursionError):
        return Entry(place, None, TOO_LARGE)


def _entry(place: str, value: Any) -> Entry:
    if isinstance(value, dict):
        return Entry(place, value)
    return Entry(place, None, f"is a {type(value).__name__}, not a JSON object")


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file as `stream_rows`, each with the words that say where it is.

    Raises MfpoError also when the file is empty, or when a line or an entry is no JSON object.
    """
    check_json(beginning(path), path)
    is_empty = True
    for place, row, fault in stream_rows(path):
        if row is None:
            raise MfpoError(f"{path}, {place}: {fault}; write one JSON object a line")
        is_empty = False
        yield f"{path}, {place}", row
    if is_empty:
        raise MfpoError(f"{path}: is an empty list; give a file with one JSON object a line")


def read_id(row: dict[str, Any], keys: tuple[str, ...], where: str) -> str | None:
    """The first of `keys` that `row` has, as a text; ids may be texts or whole numbers, and null counts as absent.

    Raises MfpoError when it is anything else.
    """
    key = next((key for key in keys if row.get(key) is not None), None)
    if key is None:
        return None
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise MfpoError(f"{where}: {key} is {brief(value)}, but must be a string or a whole number")
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
        raise TypeError(f"{key} is {brief(value)}, but must be a string")
    return value


def read_texts(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The list of texts under `key`, as `read_field`."""
    value = row[key]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{key} is {brief(value)}, but must be a list of strings")
    return tuple(value)


def some(names: Sequence[str]) -> str:
    """The first three of `names`, none longer than 80 letters, and how many more there are, for an error message."""
    return ", ".join(" ".join(name.split())[:80] for name in names[:3]) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )
