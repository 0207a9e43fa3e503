"""The exceptions that a user is meant to read."""

from typing import Never, NoReturn


class FerdError(Exception):
    """Something the user can mend; its text is one line saying what, where and what to do."""


class Unreachable(FerdError):
    """A service that does not answer just now: the same may succeed a little later."""


def no_such(piece: str, name: Never) -> NoReturn:
    """Of a name that ``ferd.config`` takes and nothing is built for; mypy finds such a one, too.

    Raises:
        FerdError: always.
    """
    raise FerdError(f"{piece} {name!r}: is in ferd.config.Method, and nothing builds it; see docs/library.md")
