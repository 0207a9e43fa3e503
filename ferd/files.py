"""Files that are written whole or not at all."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ferd.errors import FerdError

NUMBERS = re.compile(r"\[\n\s+(?:[-\d.e+]+|null)(?:,\n\s+(?:[-\d.e+]+|null))*\n\s+\]")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it replaces ``path`` when the block succeeds.

    Raises:
        FerdError: the folder is not writable or the disk is full; ``path`` is as it was.
    """
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FerdError(
            f"{path}: cannot be written: {reason}; free space or correct the permissions of "
            f"{path.parent}, then run again"
        ) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Indented JSON with a final newline, a list of numbers on one line; NaN is refused."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    text = NUMBERS.sub(lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]"), text)
    with atomic_write(path) as part:
        part.write_text(text)


def write_json_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line; NaN is refused."""
    with atomic_write(path) as part:
        part.write_text("".join(json.dumps(record, allow_nan=False) + "\n" for record in records))
