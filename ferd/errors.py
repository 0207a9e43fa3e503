"""The exception that a user is meant to read."""


class FerdError(Exception):
    """Something the user can mend; its text is one line saying what, where and what to do."""


class Unreachable(FerdError):
    """A service that does not answer just now: the same may succeed a little later."""
