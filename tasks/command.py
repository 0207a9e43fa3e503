"""What every command of a person shares: a fault, or Ctrl-C, ends it with one line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ferd.errors import FerdError

BAD_INPUT = 2
INTERRUPTED = 130  # a shell's code for Ctrl-C


@contextmanager
def as_command(name: str) -> Iterator[None]:
    """Run a command's body; what a person can mend is one line on stderr, without a traceback."""
    try:
        yield
    except FerdError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
