"""The mistakes a user can make. The command line prints them on one line, without a traceback."""


class MfpoError(Exception):
    """Says what is wrong, where (file, row), and what to do."""


class RecordError(MfpoError):
    """One row cannot become a record. Bulk work sets the row aside with this reason and goes on."""


class SettingError(MfpoError):
    """A setting has a value it cannot have."""


# As much of a user's text, or of another library's, as a message repeats.
_BRIEF, _LINE = 80, 300


def first_line(error: Exception) -> str:
    """The first line of what another library says, or the error's name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:_LINE]


def brief(value: object) -> str:
    """The repr of what a user gave, cut to what fits into a message.

    >>> brief("cat.jpg"), brief("/9j/" * 1000)[-9:]
    ("'cat.jpg'", "//9j/...'")
    """
    if isinstance(value, str):
        return repr(value if len(value) <= _BRIEF else value[:_BRIEF] + "...")
    text = repr(value)
    return text if len(text) <= _BRIEF else text[:_BRIEF] + "..."


def one_line(error: Exception) -> str:
    """A message as one line; what is too long for a screen loses its middle, as the end says what to do."""
    text = " ".join(str(error).splitlines())
    return text if len(text) <= 2000 else f"{text[:1500]} ... {text[-300:]}"
