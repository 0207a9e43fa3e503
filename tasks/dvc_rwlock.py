"""DVC's list of who has which files, ``.dvc/tmp/rwlock``: written whole.

DVC itself opens it and fills it: a full disk leaves it empty, and then no stage of the folder runs any more.
It does so eight times a stage, and for a replaced file a busy disk is waited for: where the list fits into
the file that is there, it is written over it, at its full length.
"""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from dvc import rwlock

from ferd.files import atomic_write

BLOCK = 4096  # bytes: a list is filled up with spaces to a multiple of it, so that the next one fits

_by_dvc = rwlock._edit_rwlock


class Whole:
    """A file system of DVC's on this machine, on which files are written whole."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    @contextmanager
    def open(self, path: str, mode: str = "r", **options: Any) -> Iterator[Any]:
        """As the file system's own.

        Raises:
            FerdError: the file cannot be written; it is as it was.
        """
        if mode == "w":
            text = io.StringIO()
            yield text
            overwrite(Path(path), text.getvalue().encode(options.get("encoding", "utf-8")))
        else:
            with self._fs.open(path, mode, **options) as file:
                yield file


def overwrite(path: Path, text: bytes) -> None:
    """Write a file, with spaces behind: over the one that is there, of which no byte needs new room, or anew.

    Raises:
        FerdError: the file cannot be written; it is as it was.
    """
    room = path.stat().st_size if path.is_file() else 0
    if len(text) > room or not _written_over(path, text.ljust(room)):
        with atomic_write(path) as part:
            part.write_bytes(text.ljust(-(-len(text) // BLOCK) * BLOCK))


def _written_over(path: Path, text: bytes) -> bool:
    """Whether a file has these bytes now, as many as it had; else it is as it was."""
    with suppress(OSError), path.open("rb+", buffering=0) as file:
        before = file.read()
        file.seek(0)
        if file.write(text) == len(text):  # one call: no stop leaves a part of it
            return True
        file.seek(0)
        file.write(before)
    return False


def edit(lock_dir: str, fs: Any, hardlink: bool) -> AbstractContextManager[Any]:
    """The list, to be changed."""
    return _by_dvc(lock_dir, Whole(fs), hardlink)


def write_whole() -> None:
    """Have DVC write it so in this process."""
    rwlock._edit_rwlock = edit
