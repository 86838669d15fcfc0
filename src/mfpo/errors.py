"""The mistakes a user can make. The command line prints them on one line, without a traceback."""

import difflib
import logging
from collections.abc import Iterable
from functools import cache


class MfpoError(Exception):
    """Says what is wrong, where (file, row), and what to do."""


class RecordError(MfpoError):
    """A row that cannot become a record. Bulk commands set it aside with this reason and continue."""


class SettingError(MfpoError):
    """A setting has a value it cannot have."""


# As much of a user's text, or of another library's, as a message repeats.
_BRIEF, _LINE = 80, 300


def nearest(name: str, names: Iterable[str]) -> str:
    """What to give instead of a name that is none of `names`: the one it is nearest to, or all.

    >>> nearest("dop", ["dpo", "mfpo"]), nearest("x", ["dpo", "mfpo"])
    ("did you mean 'dpo'?", 'there are dpo, mfpo')
    """
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"


def first_line(error: Exception) -> str:
    """The first line of another library's error message, or the error's name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:_LINE]


def brief(value: object) -> str:
    """The repr of a user's value, shortened to fit into a message.

    >>> brief("cat.jpg"), brief("/9j/" * 1000)[-9:]
    ("'cat.jpg'", "//9j/...'")
    """
    if isinstance(value, str):
        return repr(value if len(value) <= _BRIEF else value[:_BRIEF] + "...")
    text = repr(value)
    return text if len(text) <= _BRIEF else text[:_BRIEF] + "..."


def one_line(error: Exception) -> str:
    """A message on one line; a long one loses its middle, because the end says what to do."""
    text = " ".join(str(error).splitlines())
    return text if len(text) <= 2000 else f"{text[:1500]} ... {text[-300:]}"


@cache
def warn_once(message: str) -> None:
    """Log what goes on, but not as the user may expect."""
    logging.getLogger("mfpo").warning(message)
