"""The processes of a stack: supervisord and all below it, and what has outlived supervisord."""

import signal
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from ferd.errors import FerdError

MARK = "S3_COMMAND"  # with the folder in the environment of supervisord and all below it, in no shell's
PATIENCE_SECONDS = 150.0  # more than all `stopwaitsecs` of supervisord.conf together
POLL_SECONDS = 0.25


def running(folder: Path) -> dict[str, list[psutil.Process]]:
    """The processes of the stack in a folder, by program; ``supervisord`` is one."""
    found = defaultdict(list)
    for process in psutil.process_iter(["environ", "cmdline"]):
        environment = process.info["environ"] or {}
        if environment.get("STACK_FOLDER") == str(folder) and MARK in environment:
            found[environment.get("SUPERVISOR_PROCESS_NAME", "supervisord")].append(process)
        elif _is_postgres(process.info["cmdline"] or [], folder):
            found["postgresql"].append(process)
    return dict(found)


def _is_postgres(command: list[str], folder: Path) -> bool:
    """For where a container's root may not see another user's environment."""
    return len(command) > 2 and command[1:3] == ["-D", str(folder / "postgresql")]


def end(folder: Path, program: str) -> None:
    """TERM (for PostgreSQL INT, its clean stop), a wait, KILL.

    Raises:
        FerdError: they are another user's.
    """
    gentle = signal.SIGINT if program == "postgresql" else signal.SIGTERM
    for stop in (gentle, signal.SIGKILL):
        for process in running(folder).get(program, []):
            with suppress(psutil.NoSuchProcess):
                _send(process, stop)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while program in running(folder) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def _send(process: psutil.Process, stop: signal.Signals) -> None:
    try:
        process.send_signal(stop)
    except psutil.AccessDenied:
        raise FerdError(
            f"process {process.pid} is of the user {process.username()}; end it as that user"
        ) from None


def describe(found: Mapping[str, list[psutil.Process]]) -> str:
    """Programs and their process ids, on one line."""
    return ", ".join(
        f"{name} ({' '.join(str(process.pid) for process in processes)})"
        for name, processes in sorted(found.items())
    )
