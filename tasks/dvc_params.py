"""DVC's reading of ``params.yaml``: parsed once a process, where DVC parses it anew for every stage.

Half of what DVC takes to find that the stages of the whole grid are up to date is this one file.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from dvc.dependency import param
from dvc.fs import LocalFileSystem
from dvc.utils.serialize import load_path

_by_dvc = param.read_param_file


def read_once() -> None:
    """Have DVC read by ``read`` in this process."""
    param.read_param_file = read


def read(
    fs: Any, path: str, key_paths: Sequence[str] | None = None, flatten: bool = False, **options: Any
) -> Any:
    """What stands in a file under each of some keys, ``a.b.c``; those that are not there are left out."""
    if not (flatten and key_paths) or options or not Path(path).is_file():
        return _by_dvc(fs, path, key_paths, flatten, **options)
    stat = Path(path).stat()
    content = _content(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)
    try:
        return deepcopy({key: _value(content, key) for key in key_paths})
    except (KeyError, TypeError):  # a key is missing, or a pattern
        return _by_dvc(fs, path, key_paths, flatten)


@lru_cache(maxsize=8)
def _content(path: str, *_as_it_was: int) -> Any:
    """The file, by its time of change, size and inode."""
    return load_path(path, LocalFileSystem())


def _value(content: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        content = content[part]
    return content
