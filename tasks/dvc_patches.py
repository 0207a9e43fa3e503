"""Functions of DVC that this project's processes replace: files are whole, and hundreds of stages quick.

- ``dvc.lock``: DVC opens it and fills it, seconds long: a stop, or a full disk, in that time leaves a part,
  which it may later take for the whole, and every stage that is missing is computed again. For each stage
  it parses the whole file twice, once so as to keep comments, and writes all anew.
- ``.dvc/tmp/rwlock``, the list of who has which files: a full disk leaves it empty, and then no stage of the
  folder runs any more. DVC edits it eight times a stage, though all but two of the edits change nothing.
- ``params.yaml``: DVC parses it anew for every stage, half of what it takes to find that all are up to date,
  and copies all of it for every stage that has variables.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from dvc import rwlock
from dvc.dependency import param
from dvc.fs import LocalFileSystem
from dvc.parsing.context import CtxDict
from dvc.utils import strictyaml
from dvc.utils.serialize import _common, _yaml, load_path

from ferd.files import atomic_write

Dumper = Callable[..., Any]
LOCK = ".lock"
STAGES = "stages"  # the key of a lock under which they are

_parse_by_dvc, _modify_by_dvc = _yaml.parse_yaml, _yaml._modify_data
_edit_by_dvc, _hold_by_dvc, _read_by_dvc = rwlock._edit_rwlock, rwlock.rwlock, param.read_param_file
Held = frozenset[tuple[int, str, str]]  # a process, the folder of its list, and a file

_held: ContextVar[tuple[Held, Held]] = ContextVar(
    "files that are held for reading, and for writing", default=(frozenset(), frozenset())
)


def apply() -> None:
    """Have DVC use the functions of this module, in this process."""
    _yaml.parse_yaml = strictyaml.parse_yaml = parse_yaml
    _common._dump_data = _yaml._dump_data = dump_whole
    _yaml._modify_data = modified
    rwlock._edit_rwlock = edit
    rwlock.rwlock = hold
    param.read_param_file = read_param_file
    CtxDict.__deepcopy__ = copied


def parse_yaml(text: str, path: str, typ: str = "safe") -> Any:
    """The content of a file of YAML; the lock that was read last is not parsed again."""
    if _is_lock(path) and typ == "safe":
        return deepcopy(_parsed(text, path))
    return _parse_by_dvc(text, path, typ)


@lru_cache(maxsize=1)
def _parsed(text: str, path: str) -> Any:
    return _parse_by_dvc(text, path)


def _is_lock(path: str) -> bool:
    return Path(path).suffix == LOCK


def dump_whole(path: str, data: Any, dumper: Dumper, fs: Any = None, **options: Any) -> None:
    """Write a file of DVC's beside the one that is there, which it then replaces; its mode stays.

    Raises:
        FerdError: the disk is full, or the folder not writable; the file is as it was.
    """
    if fs is not None and not isinstance(fs, LocalFileSystem):
        raise TypeError(f"{path}: not a file of this machine")
    target = Path(path).resolve()  # where a link leads
    with atomic_write(target) as part:
        with part.open("w", encoding="utf-8") as file:
            dumper(data, file, **options)
        if target.exists():
            shutil.copymode(target, part)


@contextmanager
def modified(path: str, parser: Callable[..., Any], dumper: Dumper, fs: Any = None) -> Iterator[Any]:
    """The content of a file of DVC's, to be changed; of a lock only changed stages are dumped anew.

    A lock's comments are lost then; one that stays as it was is not written.
    """
    if not _is_lock(path) or not Path(path).exists():
        with _modify_by_dvc(path, parser, dumper, fs) as content:  # by ``dump_whole``
            yield content
        return
    text = _yaml._load_data(path, parser=lambda text, _: text, fs=fs)
    before = parse_yaml(text, path)
    content = deepcopy(before)
    yield content
    if _exactly(content) != _exactly(before):
        new = with_stages(text, before, content, dumper)
        if new is not None and _reads_as(new, path, content):
            dump_whole(path, new, lambda changed, stream: stream.write(changed), fs)
        else:
            dump_whole(path, content, dumper, fs)


def with_stages(text: str, before: Any, content: Any, dumper: Dumper) -> str | None:
    """A lock's text in which stages have changed or are added in the end; None where anything else is new.

    It must be read back: a name that is not on one line, or an anchor that another stage has, spoils it.
    """
    old, new = before.get(STAGES), content.get(STAGES)
    if not old or not new or list(content)[-1] != STAGES or list(new)[: len(old)] != list(old):
        return None
    if _exactly({**before, STAGES: new}) != _exactly(content):  # beside the stages, too
        return None
    for name, stage in new.items():
        if name not in old or _exactly(old[name]) != _exactly(stage):
            block = _block(name, stage, dumper)
            place = _place_of(block.partition("\n")[0], text) if name in old else (len(text), len(text))
            if place is None:
                return None
            text = text[: place[0]] + block + text[place[1] :]
    return text


def _block(name: str, stage: Any, dumper: Dumper) -> str:
    """A stage as it stands in a lock: its first line, and lines that are indented by more."""
    stream = io.StringIO()
    dumper({STAGES: {name: stage}}, stream)
    return stream.getvalue().partition("\n")[2]


def _place_of(first_line: str, text: str) -> tuple[int, int] | None:
    """Where a stage begins and ends in the text of a lock: before the next line indented by two or less."""
    found = re.search(rf"^{re.escape(first_line)}\n(?:(?:   .*)?\n)*", text, re.MULTILINE)
    return found.span() if found else None


def _exactly(content: Any) -> str:
    """By which contents are compared: 1, 1.0 and True differ, and so does another order."""
    return json.dumps(content, default=repr)


def _reads_as(text: str, path: str, content: Any) -> bool:
    try:
        return _exactly(_parsed(text, path)) == _exactly(content)
    except _yaml.YAMLFileCorruptedError:
        return False


@contextmanager
def hold(
    tmp_dir: str, fs: Any, cmd: str, read: Sequence[str], write: Sequence[str], hardlink: bool
) -> Iterator[None]:
    """Enter files in the list of who has which; nothing where this thread holds them all already."""
    mine = (os.getpid(), tmp_dir)
    reads, writes = ({(*mine, path) for path in paths} for paths in (read, write))
    held_reads, held_writes = _held.get()
    if held_writes >= writes and held_reads | held_writes >= reads:
        yield
        return
    with _hold_by_dvc(tmp_dir, fs, cmd, read, write, hardlink):
        outer = _held.set((held_reads | reads, held_writes | writes))
        try:
            yield
        finally:
            _held.reset(outer)


def edit(lock_dir: str, fs: Any, hardlink: bool) -> AbstractContextManager[Any]:
    """The list, to be changed; it is written whole."""
    return _edit_by_dvc(lock_dir, _WrittenWhole(fs), hardlink)


class _WrittenWhole:
    """A file system of DVC's on this machine, whose files are replaced where they are written."""

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
            with atomic_write(Path(path), durable=False) as part:  # the list is of processes that run now
                part.write_text(text.getvalue(), "utf-8")
        else:
            with self._fs.open(path, mode, **options) as file:
                yield file


def read_param_file(
    fs: Any, path: str, key_paths: Sequence[str] | None = None, flatten: bool = False, **options: Any
) -> Any:
    """What stands in a file under each of some keys, ``a.b.c``; those that are not there are left out."""
    local = isinstance(fs, LocalFileSystem) and Path(path).is_file()
    if not (flatten and key_paths and local) or options:
        return _read_by_dvc(fs, path, key_paths, flatten, **options)
    stat = Path(path).stat()
    content = _content(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)
    try:
        return deepcopy({key: _value(content, key) for key in key_paths})
    except (KeyError, TypeError):  # a key is missing, or a pattern
        return _read_by_dvc(fs, path, key_paths, flatten)


@lru_cache(maxsize=8)
def _content(path: str, *_as_it_was: int) -> Any:
    """The file, by its time of change, size and inode."""
    return load_path(path, LocalFileSystem())


def _value(content: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        content = content[part]
    return content


def copied(mapping: CtxDict, _memo: Any = None) -> CtxDict:
    """``copy.deepcopy`` of the variables of ``dvc.yaml``, to which others may be added; values are shared."""
    new = CtxDict()
    new.data = {
        key: copied(value) if isinstance(value, CtxDict) else value for key, value in mapping.data.items()
    }
    return new
