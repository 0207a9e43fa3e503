"""What every stage command shares: events on stdout, one-line errors, the resume folder.

A stage prints one JSON line an event, for whoever shows progress (at a terminal, lines to read):

    {"task": "distill digits/...", "event": "progress", "done": 3, "total": 12, "seconds_left": 31}

Events are ``computing`` and ``computed`` (around the work itself), ``progress``, ``measured`` (a
teacher's figures before it is used), ``resumable`` (the folder of an attempt, for who discards it) and
``error``.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from ferd.config import fingerprint
from ferd.errors import FerdError, Unreachable
from ferd.files import file_hash, remove_leftovers
from tasks import lineage, params, paths, slots, tracking
from tasks.command import BAD_INPUT, GOES_ON, INTERRUPTED, end_unread, not_writable
from tasks.device import device_type
from tasks.events import figures, progress_line
from tasks.locks import held
from tasks.stage import KEEPS_RESUME, discard, lock_of


class Progress:
    """Prints a stage's events and measures its computing time."""

    def __init__(self, task: str) -> None:
        self.task = task
        self._started, self._processor_started = time.monotonic(), time.process_time()
        self._first = 0
        self._slot: IO[str] | None = None
        self.resume: Path | None = None

    def event(self, event: str, **details: Any) -> None:
        """Print one JSON line; for a person at a terminal, what is of interest in words."""
        if not (sys.stdout and sys.stdout.isatty()):  # None where it was closed
            print(json.dumps({"task": self.task, "event": event, **details}), flush=True)
        elif event == "progress":
            print(f"{self.task}: {progress_line(details)}", flush=True)
        elif event == "measured":
            print(f"{self.task}: measured {figures(details)}", flush=True)

    def resume_folder(self, *settings: Any) -> Path:
        """Where an interrupted attempt left its state; discarded when the stage has finished."""
        self.resume = resume_folder(self.task, *settings)
        return self.resume

    def start(self, done: int = 0) -> None:
        """Computing begins, when a slot is free; ``done`` units were finished by an earlier attempt."""
        own = slots.own()
        if own and not self._slot:
            self._slot = slots.take(own)
        self._started, self._processor_started = time.monotonic(), time.process_time()
        self._first = done
        self.event("computing")

    def advance(self, done: int, total: int, **details: Any) -> None:
        """``done`` of ``total`` units are finished."""
        rate = self.seconds / max(1, done - self._first)
        self.event("progress", done=done, total=total, seconds_left=round(rate * (total - done)), **details)

    def finish(self) -> None:
        """Computing has ended; the slot is free for another stage."""
        if self._slot:
            self._slot.close()
        self.event("computed")

    @property
    def resumed(self) -> bool:
        """Whether an earlier attempt did a part."""
        return self._first > 0

    @property
    def seconds(self) -> float:
        """Seconds of computing in this process."""
        return time.monotonic() - self._started

    @property
    def processor_seconds(self) -> float:
        """The same, of all its threads' processor time: what else the machine did hardly counts."""
        return time.process_time() - self._processor_started


@contextmanager
def running(task: str) -> Iterator[Progress]:
    """Run a stage's body, alone; a fault that the user can mend, or Ctrl-C, ends the process with one line.

    The event of a service that does not answer says ``retryable``. Run by DVC, only with the code and the
    settings by which DVC records the result.
    """
    progress = Progress(task)
    try:
        if by_dvc := "DVC_STAGE" in os.environ and _command(task) in lineage.COMMANDS:
            lineage.require(_command(task))
        with alone(task):
            used = params.used_by(task) if by_dvc else None
            yield progress
            if by_dvc and params.used_by(task) != used:
                raise FerdError(
                    f"{params.PARAMS}: its settings for this stage were changed while it ran, and DVC would "
                    "record the new ones; run it again, which takes up what still holds"
                )
            if progress.resume and os.environ.get(KEEPS_RESUME):
                progress.event("resumable", folder=str(progress.resume))
            elif progress.resume:
                discard(progress.resume)
            progress.finish()
    except FerdError as error:
        _end(progress, str(error), retryable=isinstance(error, Unreachable))
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not _is_of_memory(error):
            raise
        reason = " ".join(str(error).split(". ")[0].split()) or "out of memory"
        _end(progress, f"{reason}; lower batch_size, or run fewer stages at a time")
    except BrokenPipeError as error:
        end_unread(error)
    except OSError as error:
        _end(progress, not_writable(error))
    except KeyboardInterrupt:
        print(f"{task}: {GOES_ON}", file=sys.stderr)
        sys.exit(INTERRUPTED)


@contextmanager
def alone(task: str) -> Iterator[None]:
    """Wait until no other process of this folder does the same task, whose resume files they would share."""
    lock = lock_of(paths.RESUME / _file_name(task))
    lock.parent.mkdir(parents=True, exist_ok=True)
    with held(lock, waiting=f"{task}: waiting for another process that does the same"):
        yield


def resume_folder(task: str, *settings: Any) -> Path:
    """Where a stage that was interrupted left its state, with the same settings, code and kind of device.

    Kept outside the stage's outputs, in a folder named by the hash of all that, so that nothing is ever
    resumed under other settings; the states of others stay until ``discard``. Comments are no code.

    Raises:
        FerdError: a file of the code is not Python.
    """
    root = Path(__file__).parents[1]
    own = lineage.behind(f"tasks/{_command(task)}.py", root)
    files = {Path(__file__), *(root / path for path in own), *root.glob("ferd/**/*.py")}
    code = [lineage.code_hash(file) for file in sorted(files)]
    return (
        paths.RESUME / _file_name(task) / fingerprint(*settings, code, torch.__version__, device_type())[:16]
    )


def move_folder(source: Path, target: Path) -> None:
    """Put a finished folder of files in place of ``target``.

    By hard links, or copies where the disk has none: the source stays until its resume folder is discarded,
    so that a stage that is killed between the two still finds what it needs to finish. Without hidden files:
    what a writer that was killed left.
    """
    part = target.with_name(f".{target.name}.part-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        shutil.copytree(source, part, copy_function=_link_or_copy, ignore=shutil.ignore_patterns(".*"))
        shutil.rmtree(target, ignore_errors=True)
        part.replace(target)
    except shutil.Error as error:  # a (source, target, reason) a file
        raise FerdError(f"{target}: cannot be written: {error.args[0][0][2]}") from None
    except OSError as error:
        raise FerdError(f"{target}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    return file_hash(path, "sha256")


def _end(progress: Progress, message: str, *, retryable: bool = False) -> None:
    """End the process by a fault: an event on stdout, and a line on stderr."""
    progress.event("error", message=message, retryable=retryable)
    print(f"{progress.task}: {message}", file=sys.stderr)
    if not retryable:
        tracking.fail_unfinished()
    sys.exit(BAD_INPUT)


def _is_of_memory(error: RuntimeError) -> bool:
    """Of the CPU's, torch has no kind of error of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _command(task: str) -> str:
    """``distill`` of ``distill digits/resnet8-w8/ferd/s0``."""
    return task.split()[0]


def _file_name(task: str) -> str:
    return task.replace(" ", "-").replace("/", "-")


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
