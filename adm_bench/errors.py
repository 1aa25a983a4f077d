"""The one exception that a user can mend, how the leaves' refusals become it, and how an error is said in one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Modes of a file or folder, and a disk that can be read only, or can be no more than that since it failed."""


class InputError(Exception):
    """Bad input: one line that says what was found, what was expected and the way out. Exit status 2."""


class AlreadySaidError(Exception):
    """What went wrong has been said, by this process of `torchrun` or by another; nothing is left but to end."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(f"said before (exit status {exit_status})")
        self.exit_status = exit_status


def explain(error: Exception) -> tuple[str, int]:
    """An error as one line, and the exit status: 2 for what a person can mend, 1 for a failure of ours."""
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'the disk'}: {error.strerror}; make room, or choose another place", 2
    if isinstance(error, OSError) and error.errno in FORBIDDEN and error.filename:
        return f"{error.filename}: {error.strerror}; allow it, or choose another place", 2
    message = f"internal failure: {type(error).__name__}: {' '.join(str(error).split())}"
    return f"{message} (adm-bench --debug ... shows where)", 1


@contextmanager
def bad_input(where: object = "") -> Iterator[None]:
    """Turn a ValueError of the code inside, to which user input was handed, into an InputError.

    `where` is the file or option that the input came from; it begins the line.
    """
    try:
        yield
    except ValueError as error:
        line = " ".join(str(error).split())
        raise InputError(f"{where}: {line}" if where and not line.startswith(str(where)) else line) from error
