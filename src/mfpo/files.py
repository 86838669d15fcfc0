"""Text and JSON files that a user gives, read whole."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from mfpo.errors import MfpoError

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
