"""The pipeline as DVC sees it: what is out of date, and how one stage is run."""

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ferd.errors import FerdError
from ferd.files import atomic_write
from tasks import lineage, params, paths
from tasks.command import IN_THE_WAY, NOT_WRITABLE

REPORT = "report"
BUSY = "rwlock' and try again"  # DVC's last words on a stage whose files another process has
BUSY_POLL_SECONDS = 1.0
MOST_POLL_SECONDS = 30.0  # after doubling: each attempt reads the files of hundreds of stages
PERMANENT = (*NOT_WRITABLE, *IN_THE_WAY)  # no retry helps
KEEPS_RESUME = "FERD_KEEPS_RESUME"  # set: who runs the stage discards what it could be resumed from
T = TypeVar("T")


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


class Busy(FerdError):
    """DVC refuses, since another process runs stages of this folder."""


class Pipeline:
    """The stages of ``dvc.yaml`` and ``dvc.lock``, read once: with hundreds of them that takes seconds.

    Raises:
        FerdError: they cannot be read.
    """

    def __init__(self) -> None:
        from dvc.repo import Repo

        # Of a stage that was stopped it would say, each time, that its lock is removed.
        logging.getLogger("dvc.rwlock").setLevel(logging.ERROR)
        with plain_errors():
            self._repo = Repo(".", _wait_for_lock=True)  # others run stages of this folder meanwhile
            with self._repo.lock:  # by which they write dvc.lock
                graph = self._repo.index.graph
            self._needs = {
                stage.addressing: [need.addressing for need in graph.successors(stage)]
                for stage in graph.nodes
            }
            self._known = {stage.addressing: stage for stage in graph.nodes}

    def student_stages(
        self, benchmark: str, methods: Sequence[str] | None, seeds: Sequence[int] | None
    ) -> list[str]:
        """Names of the stages that evaluate a benchmark's students, by default all.

        Raises:
            FerdError: dvc.yaml has no stage for a method or seed that was named.
        """
        students: dict[str, tuple[str, int]] = {}
        for name, stage in self._known.items():
            kind, *arguments = _command(stage.cmd)
            if kind == "tasks.evaluate" and Path(arguments[0]).parts[1] == benchmark:
                student, method, seed = paths.identity(Path(arguments[0]))
                students |= {name: (method, seed)} if student else {}
        for position, kind, wanted in ((0, "method", methods), (1, "seed", seeds)):
            known = list(dict.fromkeys(student[position] for student in students.values()))
            for value in wanted or ():
                if value not in known:
                    raise FerdError(
                        f"dvc.yaml evaluates no {kind} {value!r} of {benchmark}; choose from "
                        f"{', '.join(map(str, known))}, or add it to the stages that distil and evaluate them"
                    )
        return [
            name
            for name, (method, seed) in students.items()
            if (methods is None or method in methods) and (seeds is None or seed in seeds)
        ]

    def analyses_of(self, evaluations: Sequence[str]) -> list[str]:
        """Names of the stages that analyse what these stages evaluate."""
        evaluated = {_command(self._known[name].cmd)[1] for name in evaluations}
        return [
            name
            for name, stage in self._known.items()
            for module, *arguments in [_command(stage.cmd)]
            if module == "tasks.analyse" and arguments[0] in evaluated
        ]

    def plan(self, targets: Sequence[str] | None = None, *, report: bool = False) -> list[Stage]:
        """The targets and all they need, in topological order; by default every stage.

        A stage must run where DVC finds it changed, or where something it needs must run. Of the lists of
        code those count that ``sources`` would write now. Waits while another process writes what is read.

        Args:
            report: the report in the end, too, though not all that it draws.

        Raises:
            FerdError: dvc.yaml has no such stage, or one that does not depend on the code of its networks.
        """
        names = self._ancestors(targets or list(self._needs)) + ([REPORT] if report else [])
        self._refuse_without_network(names)
        lists = lineage.lists()
        changed = when_free(lambda: self._changed(names, lists))
        planned: dict[str, Stage] = {}
        for name in names:
            known = self._known[name]
            upstream = tuple(need for need in self._needs[name] if need in names)
            stale = name in changed or any(planned[need].stale for need in upstream if need != lineage.STAGE)
            uncached = tuple(Path(out.def_path) for out in known.outs if not out.use_cache)
            planned[name] = Stage(name, upstream, stale, _command(known.cmd), uncached)
        return list(planned.values())

    def _refuse_without_network(self, names: Sequence[str]) -> None:
        benchmarks = params.read().benchmarks
        for name in names:
            stage = self._known[name]
            needed = lineage.network_lists(_command(stage.cmd), benchmarks)
            if lacking := needed - {Path(dep.def_path) for dep in stage.deps}:
                path = min(lacking)
                raise FerdError(
                    f"dvc.yaml: {name} does not depend on {path}, so that a change of its network would "
                    "outdate nothing; give it that file's name as its network (docs/library.md)"
                )

    def _changed(self, names: Sequence[str], lists: Mapping[Path, str]) -> set[str]:
        with self._repo.lock:
            found = {
                name for name in names if name != lineage.STAGE and _is_changed(self._known[name], lists)
            }
        if lineage.STAGE not in self._known:
            raise FerdError(f"dvc.yaml has no stage {lineage.STAGE}, or is not there; git checkout dvc.yaml")
        unknown = not all(out.hash_info for out in self._known[lineage.STAGE].outs)
        return found | ({lineage.STAGE} if unknown or lineage.outdated(lists) else set())

    def _ancestors(self, targets: Sequence[str]) -> list[str]:
        ordered: dict[str, None] = {}

        def visit(name: str) -> None:
            if name not in self._needs:
                raise FerdError(f"dvc.yaml has no stage {name!r}; `dvc stage list` shows those it has")
            if name not in ordered:
                for need in self._needs[name]:
                    visit(need)
                ordered[name] = None

        for target in targets:
            visit(target)
        return list(ordered)


def _is_changed(stage: Any, lists: Mapping[Path, str]) -> bool:
    """Whether DVC finds a stage changed; of the lists of code, by what they would be."""
    for finding in stage.status(check_updates=True).get(stage.addressing, []):
        of = finding.get("changed deps", finding) if isinstance(finding, dict) else {finding}
        if any(Path(path) not in lists for path in of):
            return True
    return any(
        dep.hash_info.value != hashlib.md5(lists[path].encode()).hexdigest()
        for dep in stage.deps
        if (path := Path(dep.def_path)) in lists
    )


def _command(cmd: str | list[str]) -> tuple[str, ...]:
    """``python -m MODULE ARGUMENT ...`` without its first two words; of any other command an empty module."""
    words = cmd.split() if isinstance(cmd, str) else []
    return tuple(words[2:]) if words[1:2] == ["-m"] and len(words) > 2 else ("",)


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
        discard(state)


def discard(folder: Path) -> None:
    """The stage has finished: remove its resume folder, and those of its attempts with other settings."""
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
            env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=True,  # so that a signal reaches the commands below it, as of DVC, alike
        )
        _running.add(process)
    try:
        with process:
            yield process
    finally:
        _running.discard(process)


def when_free(work: Callable[[], T]) -> T:
    """What ``work`` returns; where DVC refuses since another process runs stages here, wait for it."""
    said, pause = False, BUSY_POLL_SECONDS
    while True:
        try:
            with plain_errors():
                return work()
        except Busy as error:
            if not said:
                print(f"waiting: {error}", flush=True)
            said = True
        time.sleep(pause)
        pause = min(2 * pause, MOST_POLL_SECONDS)


@contextmanager
def plain_errors() -> Iterator[None]:
    """DVC's errors as one line each."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    try:
        yield
    except LockError as error:
        said = " ".join(str(error).split())
        raise Busy(f"another process is running stages of this folder ({said})") from None
    except DvcException as error:
        told = [error, error.__cause__] if error.__cause__ else [error]  # the cause names a line of dvc.yaml
        raise FerdError(f"dvc: {': '.join(' '.join(str(part).split()) for part in told)}") from None


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
    telling = [line for line in lines if "rror" in line and not line.startswith("ERROR: failed to reproduce")]
    line = (telling or lines or [f"it ended by exit status {code} and said nothing"])[-1]
    return line.partition("': ")[2] if line.startswith("ERROR: failed to reproduce") else line


def _is_permanent(message: str) -> bool:
    """Whether DVC says of a file what no other attempt would mend, such as ``[Errno 20] Not a directory``."""
    number = re.search(r"\[Errno (\d+)\]", message)
    return number is not None and int(number[1]) in PERMANENT


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
