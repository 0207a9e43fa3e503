"""Locks between processes: a file that one of them holds at a time; one that is killed gives it back."""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ferd.errors import FerdError


@contextmanager
def held(path: Path, *, waiting: str = "", refusal: str = "") -> Iterator[None]:
    """Hold a lock's file, whose folder is there. Where another process has it, wait for that, or refuse.

    Args:
        waiting: said on stderr by who has to wait.
        refusal: why nobody is to wait.

    Raises:
        FerdError: ``refusal``, where there is one and another process has the lock.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if refusal:
                raise FerdError(refusal) from None
            if waiting:
                print(waiting, file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
