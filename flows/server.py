"""Prefect's server for one command, where the settings name none: out of reach of what stops the command.

python -m flows.server  SOCKET  (by ``own_server``: the number of a listening socket)
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from prefect.client.base import ServerType, determine_server_type
from prefect.events.worker import EventsWorker
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)

from ferd.errors import FerdError
from tasks.locks import held

LOCK = "ferd-server.lock"
SENT_SECONDS = 30.0  # at most, for what was said last
END_SECONDS = 5.0


@contextmanager
def own_server() -> Iterator[None]:
    """Start Prefect's server for the block, and end it after; nothing where the settings name a server.

    Prefect would start one itself, in this command's group of processes: Ctrl-C would end it first, and the
    command would then ask in vain for minutes. This one has a session of its own, and ends when the pipe
    to it is closed: also when the command is killed.

    Raises:
        FerdError: it does not start; what it says of that stands above.
    """
    if determine_server_type() is not ServerType.EPHEMERAL:
        yield
        return
    with ExitStack() as ended:
        with _starts_alone():
            url, server = _start()
            ended.callback(_end, server)
            _wait_for(url)
        ended.enter_context(temporary_settings({PREFECT_API_URL: url}))
        ended.callback(_wait_until_sent)
        yield


@contextmanager
def _starts_alone() -> Iterator[None]:
    """Two that make or change the tables of one fresh database would be in each other's way."""
    home = PREFECT_HOME.value()
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / LOCK).touch()
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
        raise FerdError(f"{reason}; set PREFECT_HOME to a folder that Prefect can write to") from None
    with held(home / LOCK):
        yield


def _start() -> tuple[str, "subprocess.Popen[bytes]"]:
    """-> its address, where what asks before it is up waits, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(listening.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )
        return f"http://127.0.0.1:{listening.getsockname()[1]}/api", server


def _wait_for(url: str) -> None:
    seconds = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=seconds):
            pass
    except OSError as error:
        raise FerdError(
            f"Prefect's own server does not start ({error}); see above, or set PREFECT_API_URL to another's"
        ) from None


def _wait_until_sent() -> None:
    """Prefect sends events and logs in the background; without a server it would lose them, and say so."""
    EventsWorker.drain_all(timeout=SENT_SECONDS)  # the logs' sender, too: all are in one list


def _end(server: "subprocess.Popen[bytes]") -> None:
    assert server.stdin is not None
    server.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        server.wait(END_SECONDS)
    server.kill()
    server.wait()


def _end_with_the_command() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # of what it was just doing it says a lot
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Serve at the socket whose number is the argument, until standard input ends."""
    import uvicorn  # these take seconds, and the command needs neither
    from prefect.server.api.server import create_app

    threading.Thread(target=_end_with_the_command, daemon=True).start()
    server = uvicorn.Server(uvicorn.Config(create_app(ephemeral=True), log_level="error"))
    server.run([socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
