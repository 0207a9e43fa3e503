"""Files that are written whole or not at all, and JSON that is read with its faults named."""

import glob
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ferd.errors import FerdError

AGAIN = "run the stage that makes it again"
LEFT_SECONDS = 3600
NUMBER = float | int
NUMBERS = re.compile(r"\[\n\s+(?:[-\d.e+]+|null)(?:,\n\s+(?:[-\d.e+]+|null))*\n\s+\]")


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it replaces ``path`` when the block succeeds.

    Args:
        durable: wait until the disk has it, so that it is whole after a power cut, too.

    Raises:
        FerdError: the folder is not writable or the disk is full; ``path`` is as it was.
    """
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        yield part
        if durable:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        mend = f"free space or correct the permissions of {path.parent}"
        if isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
            mend = "move away what is in its place"
        raise FerdError(f"{path}: cannot be written: {reason}; {mend}, then run again") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """What writers of ``path`` left that were killed: parts of it that nobody has touched for an hour."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.part-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime < LEFT_SECONDS:
                continue
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def file_hash(path: Path, algorithm: str) -> str:
    """Hash (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Indented JSON with a final newline, a list of numbers on one line; NaN is refused."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    text = NUMBERS.sub(lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]"), text)
    with atomic_write(path) as part:
        part.write_text(text, "utf-8")


def write_json_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line; NaN is refused."""
    with atomic_write(path) as part:
        part.write_text("".join(json.dumps(record, allow_nan=False) + "\n" for record in records), "utf-8")


def read_json(
    path: Path, fields: Mapping[str, Any] | None = None, *, schema: str | None = None, again: str = AGAIN
) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        fields: the keys that it must have, and what each one's value is (``check_fields``).
        schema: the value that its key ``schema`` must have.
        again: what makes the file anew; said with every fault.

    Raises:
        FerdError: the file is missing, cannot be read, is damaged, or is another than is asked for.
    """
    content = _parse(_text(path, again), str(path), again)
    if schema is not None and content.get("schema") != schema:
        raise FerdError(
            f"{path}: schema is {content.get('schema')!r}, not {schema!r}; delete the file and {again}"
        )
    check_fields(content, fields or {}, str(path), again)
    return content


def read_json_lines(
    path: Path, fields: Mapping[str, Any] | None = None, *, again: str = AGAIN
) -> list[dict[str, Any]]:
    """The objects in a file with one a line, at least one; arguments and faults as of ``read_json``."""
    lines = _text(path, again).splitlines()
    if not lines:
        raise FerdError(f"{path}: empty; delete the file and {again}")
    records = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        records.append(_parse(line, where, again))
        check_fields(records[-1], fields or {}, where, again)
    return records


def check_fields(content: Any, fields: Mapping[str, Any], where: str, again: str = AGAIN) -> None:
    """Refuse what is no object, lacks a key, or has a value of another type under it.

    Args:
        fields: by key a type, as ``isinstance`` takes it; a mapping: the fields of an object; a list of one:
            what each item of a list is.

    Raises:
        FerdError: the first such fault.
    """
    if not isinstance(content, dict):
        raise FerdError(f"{where}: must be an object, found {content!r:.60}; delete the file and {again}")
    for key, kind in fields.items():
        if key not in content:
            raise FerdError(f"{where}: lacks {key!r}; delete the file and {again}")
        _check(content[key], kind, f"{where}: {key}", again)


def _check(value: Any, kind: Any, where: str, again: str) -> None:
    if isinstance(kind, Mapping):
        check_fields(value, kind, where, again)
        return
    if not isinstance(value, list if isinstance(kind, list) else kind):
        raise FerdError(f"{where}: cannot be {value!r:.60}; delete the file and {again}")
    for number, item in enumerate(value if isinstance(kind, list) else ()):
        _check(item, kind[0], f"{where}[{number}]", again)


def _text(path: Path, again: str) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise FerdError(f"{path}: no such file; {again}") from None
    except OSError as error:
        raise FerdError(f"{path}: cannot be read: {error.strerror or error}; correct that") from None
    except UnicodeDecodeError:
        raise FerdError(f"{path}: damaged, not UTF-8 text; delete the file and {again}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _parse(text: str, where: str, again: str) -> dict[str, Any]:
    try:
        content = json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        raise FerdError(f"{where}: cut off or damaged ({error}); delete the file and {again}") from None
    check_fields(content, {}, where, again)
    return dict(content)
