"""Locks between processes: a file that one of them holds at a time; one that is killed gives it back."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ferd.errors import FerdError


@contextmanager
def held(path: Path, *, waiting: str = "", refusal: str = "") -> Iterator[None]:
    """Hold a lock's file, which is gone afterwards. Who finds it taken waits, or is refused.

    Args:
        waiting: said on stderr by who has to wait.
        refusal: why nobody is to wait.

    Raises:
        FerdError: ``refusal``, where there is one and another process has the lock.
    """
    lock = _locked(path, waiting, refusal)
    while not _is_at(path, lock):  # who had it has deleted it since it was opened here
        lock.close()
        lock = _locked(path, waiting, refusal)
    try:
        yield
    finally:
        with lock, suppress(OSError):  # a file that stays is nobody's lock
            path.unlink()


def _locked(path: Path, waiting: str, refusal: str) -> IO[str]:
    lock = path.open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if refusal:
            lock.close()
            raise FerdError(refusal) from None
        if waiting:
            print(waiting, file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _is_at(path: Path, lock: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(lock.fileno()))
    except FileNotFoundError:
        return False
