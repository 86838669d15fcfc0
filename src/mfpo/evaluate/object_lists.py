"""The list of objects that a judge's reply is or holds, however it is written."""

import ast
import json
import re
from contextlib import suppress
from typing import Any

# In a list of a line each: "1. dog", "- **traffic light**"; and the line that announces it.
_LISTED = re.compile(r"\s*(?:[-*•+]|\d+[.)])\s+[*`\"]*([^\W\d_]+(?:[ -][^\W\d_]+){0,3})[*`\".,;]*\s*")
_CHECKBOX = re.compile(r"\[ \](?=[ \t]+\S)")
_BRACKETS = re.compile(r"\[[^\[\]]*\]")
_NO_COMMA = re.compile(r"""["']\s+["']""")
_ANNOUNCED = re.compile(r".*\b(objects?|list|here|things|items)\b.*:[ *]*", re.IGNORECASE)


def read_objects(reply: str) -> list[str] | None:
    """The list of texts that a reply is or holds, or None: JSON, Python's notation, or a line each.

    >>> read_objects('["dog", "cat"]'), read_objects('Here:\\n["dog"]'), read_objects("()"), read_objects("A dog.")
    (['dog', 'cat'], ['dog'], [], None)
    """
    text = _CHECKBOX.sub("", reply).strip()
    if text == "()":  # what the official prompt calls an empty list
        return []
    bracketed = text[text.find("[") : text.rfind("]") + 1]
    for part in (text, text.rpartition("\n")[2], bracketed):
        if (entries := _entries(part)) is not None:
            return _texts(entries)
    lists = [names for part in _BRACKETS.findall(text) if (names := _texts(_entries(part))) is not None]
    return lists[0] if len(lists) == 1 else _lines(text)


def _entries(text: str) -> list[Any] | None:
    """The list that a text is, in JSON's notation, or Python's: in single quotes, with a comma after the last."""
    if _NO_COMMA.search(text):  # Python would make one text of the two
        return None
    for read in (json.loads, ast.literal_eval):
        # No list, a set of lists, a number of thousands of digits, endless brackets.
        with suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            value = read(text)
            return value if isinstance(value, list) else None
    return None


def _texts(entries: list[Any] | None) -> list[str] | None:
    return entries if entries is not None and all(isinstance(name, str) for name in entries) else None


def _lines(text: str) -> list[str] | None:
    """The names in a list of a line each, with at most a line before it that announces the list."""
    first, *rest = [line for line in text.splitlines() if line.strip()] or [""]
    matches = [_LISTED.fullmatch(line) for line in (rest if _ANNOUNCED.fullmatch(first) else [first, *rest])]
    return [match.group(1) for match in matches if match] if matches and all(matches) else None
