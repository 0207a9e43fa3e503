"""DVC's command line, by which what it writes is whole: ``python -m tasks.run_dvc repro ...``.

DVC itself opens ``dvc.lock`` and fills it, seconds long: a stop, or a full disk, in that time leaves a part,
which it may later take for the whole, and every stage that is missing is computed again. It also reads the
file so as to keep comments, of which a lock has none; without, that takes a sixth of the time. And it parses
``params.yaml`` anew for every stage (``tasks.dvc_params``).
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from dvc.cli import main
from dvc.fs import LocalFileSystem
from dvc.utils.serialize import _yaml

from ferd.files import atomic_write
from tasks import dvc_params, dvc_rwlock

Dumper = Callable[..., Any]
LOCK = ".lock"


def dump_whole(path: str, data: Any, dumper: Dumper, fs: Any = None, **options: Any) -> None:
    """Write a file of DVC's beside the one that is there, which it then replaces.

    Raises:
        FerdError: the disk is full, or the folder not writable; the file is as it was.
    """
    if fs is not None and not isinstance(fs, LocalFileSystem):
        raise TypeError(f"{path}: not a file of this machine")
    with atomic_write(Path(path)) as part, part.open("w", encoding="utf-8") as file:
        dumper(data, file, **options)


@contextmanager
def modified(path: str, parser: Callable[..., Any], dumper: Dumper, fs: Any = None) -> Iterator[Any]:
    """The content of a file of DVC's, to be changed; a lock that stays as it was is not written again."""
    file = Path(path)
    parser = _yaml.parse_yaml if file.suffix == LOCK else parser
    content = _yaml._load_data(path, parser=parser, fs=fs) if file.exists() else {}
    before = deepcopy(content)
    yield content
    if content != before or not file.exists():
        dump_whole(path, content, dumper, fs)


def replace_functions() -> None:
    """Have DVC write YAML by these."""
    _yaml._dump_data = dump_whole
    _yaml._modify_data = modified


if __name__ == "__main__":
    replace_functions()
    dvc_rwlock.write_whole()
    dvc_params.read_once()
    sys.exit(main(sys.argv[1:]))
