"""Places to compute in: how many stages of a folder do so at a time, whichever processes run them."""

import fcntl
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from ferd.errors import FerdError
from tasks import paths

SLOTS = "FERD_SLOTS"  # how many there are; set by flows
FOLDER = "FERD_SLOT_FOLDER"  # where they are, if not in this folder's own .resume
SHARE = "FERD_SLOT_SHARE"  # NUMBER/COUNT of the GPU that a stage is given: which slots are its own
POLL_SECONDS = 0.1


def own() -> range:
    """The numbers of the places that this stage may compute in; none where it need not wait for one.

    Where there are as many as GPUs, each belongs to one of them.

    Raises:
        FerdError: a variable is nothing that a flow sets.
    """
    slots = _whole_numbers(SLOTS, "0", r"(\d+)")[0]
    gpu, count = _whole_numbers(SHARE, "0/1", r"(\d+)/(\d+)")
    if gpu >= count:
        raise FerdError(f"{SHARE}={gpu}/{count}: there is no such GPU; flows set it, so unset it")
    return range(gpu, slots, count) if slots >= count else range(slots)


def _whole_numbers(variable: str, default: str, form: str) -> tuple[int, ...]:
    value = os.environ.get(variable) or default
    found = re.fullmatch(form, value, re.ASCII)
    if not found:
        raise FerdError(f"{variable}={value!r}: not what a flow sets, {default!r} for example; unset it")
    return tuple(map(int, found.groups()))


def take(own: range) -> IO[str]:
    """Wait for one of the places to compute in; it is free again when the file is closed.

    A place is a lock on a file, so that a process that is killed gives its own back.
    """
    folder = Path(os.environ.get(FOLDER) or paths.RESUME)
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for number in own:
            slot = (folder / f"slot-{number}").open("w", encoding="utf-8")
            with suppress(BlockingIOError):
                fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return slot
            slot.close()
        time.sleep(POLL_SECONDS)
