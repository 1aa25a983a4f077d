"""The one exception that a user can mend, and how the leaves' refusals become it."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """Bad input: one line that says what was found, what was expected and the way out. Exit status 2."""


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
