"""The one exception that a user is meant to read."""


class FerdError(Exception):
    """Something the user can mend; its text is one line saying what, where and what to do."""
