"""DVC's list of who has which files, ``.dvc/tmp/rwlock``: written whole.

DVC itself opens it and fills it: a full disk leaves it empty, and then no stage of the folder runs any more.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from dvc import rwlock

from ferd.files import atomic_write

_by_dvc = rwlock._edit_rwlock


class Whole:
    """A file system of DVC's on this machine, whose files that are written replace those that were there."""

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
            with atomic_write(Path(path)) as part, part.open("w", **options) as file:
                yield file
        else:
            with self._fs.open(path, mode, **options) as file:
                yield file


def edit(lock_dir: str, fs: Any, hardlink: bool) -> AbstractContextManager[Any]:
    """The list, to be changed."""
    return _by_dvc(lock_dir, Whole(fs), hardlink)


def write_whole() -> None:
    """Have DVC write it so in this process."""
    rwlock._edit_rwlock = edit
