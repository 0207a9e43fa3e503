"""Python commands without the seconds that loading their libraries takes: forks of a process that has them.

As a script, that process: it reads a request a line, forks, and says the process's number and then how it
ended. The project's own code is loaded after the fork, from the folder that the command is run in.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from select import select
from typing import Any

LIBRARIES = (
    "torch._dynamo",  # of an optimiser's first step
    "mlflow.store.tracking.sqlalchemy_store",
    "dvc.repo",
    "pyautoattack",
    "sklearn.datasets",
    "PIL.Image",
)  # not Prefect: it reads its settings as it is loaded


class WarmPython:
    """The process, for one command at a time."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # else two answers may come as one, and the second is waited for
        )
        atexit.register(self._end)

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def run(
        self, arguments: Sequence[str], folder: Path, environment: dict[str, str], timeout: float
    ) -> "subprocess.CompletedProcess[str]":
        """As ``subprocess.run`` of ``python -m ...`` or ``python -c ...`` with its output captured."""
        with tempfile.TemporaryDirectory() as outputs:
            files = [Path(outputs, name) for name in ("stdout", "stderr")]
            self._say([*arguments], str(folder), environment, [str(file) for file in files])
            number = self._hear()
            if not select([self._process.stdout], [], [], timeout)[0]:
                os.kill(number, signal.SIGKILL)
                self._hear()
                raise subprocess.TimeoutExpired([*arguments], timeout)
            code = self._hear()
            stdout, stderr = (file.read_text() for file in files)
        return subprocess.CompletedProcess([sys.executable, *arguments], code, stdout, stderr)

    def _say(self, *request: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")

    def _hear(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def serve() -> list[Any]:
    """Fork for each request; -> in a fork, its own."""
    assert threading.active_count() == 1  # a fork has no other thread
    for line in iter(sys.stdin.readline, ""):
        number = os.fork()
        if not number:
            return list(json.loads(line))
        print(number, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), flush=True)
    sys.exit()


def become(arguments: list[str], folder: str, environment: dict[str, str], outputs: list[str]) -> None:
    """Be ``python`` with these arguments, in that folder."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate([os.devnull, *outputs]):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.path[:1] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    option, what, *sys.argv[1:] = arguments
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv[0] = option
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    for library in LIBRARIES:
        __import__(library)
    gc.freeze()  # or each fork, as it ends, goes through all that they made: seconds
    become(*serve())
