"""The mistakes a user can make. The command line prints them on one line, without a traceback."""


class MfpoError(Exception):
    """Says what is wrong, where (file, row), and what to do."""


class RecordError(MfpoError):
    """One row cannot become a record. Bulk work sets the row aside with this reason and goes on."""


class SettingError(MfpoError):
    """A setting has a value it cannot have."""


def first_line(error: Exception) -> str:
    """The first line of what another library says, or the error's name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
