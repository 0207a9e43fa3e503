"""How one stage of ``dvc.yaml`` is run, and stopped."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ferd.errors import FerdError
from ferd.files import atomic_write
from tasks import lineage
from tasks.command import IN_THE_WAY, NOT_WRITABLE
from tasks.locks import held

BUSY = "rwlock' and try again"  # DVC's last words on a stage whose files another process has
OF_DVC = "ERROR: failed to reproduce"  # what it says last of any stage that failed
CANNOT = ": cannot be written: "  # by tasks.dvc_patches, of a lock
PERMANENT = (*NOT_WRITABLE, *IN_THE_WAY)  # no retry helps
PLAIN = {  # of a stage's process, whoever runs it: DVC runs commands by $SHELL, which may be none, or nologin
    "SHELL": "/bin/sh",
    "PYTHONUTF8": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONSAFEPATH": "",  # set, it would keep modules of this folder from being found
}
KEEPS_RESUME = "FERD_KEEPS_RESUME"  # set: who runs the stage discards what it could be resumed from


@dataclass(frozen=True)
class Stage:
    """A stage of ``dvc.yaml``: its name, the planned stages it needs, and whether it must run.

    ``command`` is the module that it runs, and its arguments; ``uncached`` are the outputs that DVC does
    not cache, and so could not put back itself.
    """

    name: str
    upstream: tuple[str, ...]
    stale: bool
    command: tuple[str, ...]
    uncached: tuple[Path, ...]


class StageFailed(Exception):
    """A stage ended without its outputs; ``retryable`` unless what it was given is at fault."""

    def __init__(self, stage: str, reason: str, *, retryable: bool) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage, self.reason, self.retryable = stage, reason, retryable

    def __reduce__(self) -> tuple[Any, ...]:
        """Of use where a stage is run by another process: pickle knows no keyword arguments."""
        return partial(StageFailed, retryable=self.retryable), (self.stage, self.reason)


def not_run(stage: str) -> StageFailed:
    """What a stage that was not begun before all was stopped fails by."""
    return StageFailed(stage, "not run, since the flow was stopped", retryable=False)


class StageBusy(StageFailed):
    """A stage was not run, since another process runs one that it shares files with."""


_running: set[subprocess.Popen[str]] = set()
_starting = threading.Lock()  # held while a process is started: until it is known it cannot be stopped
stopped = threading.Event()  # what waits may end, and nothing begins


@contextmanager
def stoppable() -> Iterator[None]:
    """Where this is left by an exception (Ctrl-C, a worker's SIGTERM) what runs ends, and nothing begins.

    Stages go on where they were when they are run again.
    """
    stopped.clear()
    try:
        yield
    except BaseException:
        with _starting:
            stopped.set()
            for process in list(_running):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
        raise


def run(
    stage: Stage,
    on_event: Callable[[dict[str, Any]], None],
    environment: Mapping[str, str] | None = None,
    *,
    pull: bool = False,
    anew: bool = False,
) -> None:
    """Run one stage by ``dvc repro -s``, passing on the events that its process prints.

    DVC removes a stage's outputs before it runs. When the stage fails, what was there is put back. What it
    could be resumed from is kept until DVC has the outputs: on a disk that is full, say, it fails when all is
    computed. DVC is not loaded in this process, since its library cannot be used in several threads. All is
    done in the folder that this process was in when it was called: a night that is stopped has left its own
    before its stages have ended.

    Args:
        pull: take the outputs from DVC's remote where another machine computed the same (``tasks.share``).
        anew: compute them, even where DVC's run cache has what the same command made of the same inputs.

    Raises:
        StageFailed: with the stage's own line where it printed one.
        StageBusy: another process has the stage's files just now.
    """
    folder = Path.cwd()
    kept = {path: path.read_bytes() for output in stage.uncached for path in _files(folder / output)}
    command = ["tasks.run_dvc", "--wait-for-lock", "repro", "--single-item", stage.name]
    command += ["--pull"] if pull and stage.name != lineage.STAGE else []  # it is computed in a second
    command += ["--no-run-cache"] if anew else []
    resumable = []

    def watch(event: dict[str, Any]) -> None:
        if event["event"] == "resumable":
            resumable.append(folder / event["folder"])
        else:
            on_event(event)

    try:
        run_module(stage.name, command, watch, {**(environment or {}), KEEPS_RESUME: "1"}, folder)
    except StageFailed as error:
        if BUSY in error.reason:
            raise StageBusy(stage.name, error.reason, retryable=True) from None
        _put_back(folder, stage.name, kept)
        raise
    for state in resumable:
        with (
            suppress(FerdError),
            held(lock_of(state.parent), refusal="it discards them when it has finished"),
        ):
            discard(state)


def lock_of(attempts: Path) -> Path:
    """The lock of whoever computes a task, beside the folder of its attempts."""
    return attempts.parent / "locks" / attempts.name


def discard(folder: Path) -> None:
    """Of a task that is finished, and whose lock is held: remove the resume folders of all attempts."""
    shutil.rmtree(folder.parent, ignore_errors=True)


def run_module(
    name: str,
    module: Sequence[str],
    on_event: Callable[[dict[str, Any]], None],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> None:
    """Run a module with its arguments in a process of its own, passing on the events that it prints.

    Raises:
        StageFailed: of ``name``, with the process's own line where it printed one.
    """
    tail: deque[str] = deque(maxlen=20)
    failure: dict[str, Any] = {}
    with _started(name, module, environment, folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = _event(line)
            if event is None:
                tail.append(line.rstrip())
            else:
                failure = event if event["event"] == "error" else failure
                on_event(event)
    if process.returncode != 0:
        message = failure.get("message") or _last_error(tail, process.returncode)
        raise StageFailed(name, message, retryable=failure.get("retryable", not _is_permanent(message)))


@contextmanager
def _started(
    name: str, module: Sequence[str], environment: Mapping[str, str] | None, folder: Path | None
) -> Iterator[subprocess.Popen[str]]:
    """A process that ``stoppable`` reaches, until it has ended."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with _starting:
        if stopped.is_set():
            raise not_run(name)
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **PLAIN, "PATH": path, **(environment or {})},
            start_new_session=True,  # so that a signal reaches the commands below it, as of DVC, alike
        )
        _running.add(process)
    try:
        with process:
            yield process
    finally:
        _running.discard(process)


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _last_error(tail: Iterable[str], code: int) -> str:
    """What DVC or Python said last; DVC's own line says of a failed command only that it failed.

    Of one that was killed it says by which signal, and no other line says why; of files that others have,
    before its last line, which processes these are. MLflow's warnings are no reasons.
    """
    if code < 0:
        return f"it ended by {signal.Signals(-code).name}"
    said = [line.strip() for line in tail]
    lines = [line for line in said if line and not line.startswith("mlflow: ")]
    if killed := re.search(r", exited with -(\d+)", "\n".join(lines)):
        return f"it ended by {signal.Signals(int(killed[1])).name}"
    if lines and BUSY in lines[-1]:
        blockers = [line for line in lines if line.startswith("(PID ")]
        return "; ".join([*blockers, lines[-1]])
    telling = [line for line in lines if "rror" in line and not line.startswith(OF_DVC)]
    line = (telling or lines or [""])[-1]
    reason = line.partition("':")[2].strip() if line.startswith(OF_DVC) else line
    return reason or f"it ended by exit status {code} and said nothing"


def _is_permanent(message: str) -> bool:
    """Whether a file is at fault by what no other attempt would mend: ``[Errno 20] Not a directory``."""
    number = re.search(r"\[Errno (\d+)\]", message)
    return CANNOT in message or (number is not None and int(number[1]) in PERMANENT)


def _files(output: Path) -> list[Path]:
    """The files of an output, which may be a folder."""
    return [path for path in (output, *output.rglob("*")) if path.is_file()]


def _put_back(folder: Path, stage: str, uncached: Mapping[Path, bytes]) -> None:
    """What the stage had before it failed: from DVC's cache, and of what is in Git the bytes.

    DVC in a session of its own, so that a second Ctrl-C does not end it.
    """
    checkout = [sys.executable, "-m", "dvc", "--wait-for-lock", "checkout", "--quiet", "--force", stage]
    subprocess.run(  # a stage that never ran has nothing there
        checkout, cwd=folder, check=False, capture_output=True, start_new_session=True
    )
    for path, content in uncached.items():
        if not path.exists() or path.read_bytes() != content:
            with atomic_write(path) as part:
                part.write_bytes(content)
