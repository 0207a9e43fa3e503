"""Browse the record: ``python -m tasks.browse`` completes it, starts MLflow and opens the γ comparison."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from contextlib import suppress
from pathlib import Path

from ferd.errors import FerdError
from tasks import params, record, tracking
from tasks.command import as_command, command_line, end_by
from tasks.mlflow_view import HOST, PORT, address

LOG = Path("logs/mlflow.log")
START_SECONDS = 120
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")  # without, a browser in the terminal would be waited for


def main() -> None:
    """Open the server of ``MLFLOW_TRACKING_URI``, or serve the local store until a signal ends it."""
    parser = command_line(__doc__)
    parser.add_argument("--port", type=int, default=PORT)
    port = parser.parse_args().port
    store = tracking.store()
    end_by(lambda number, _frame: sys.exit(128 + number))
    with as_command("browse"), suppress(KeyboardInterrupt):
        if not 0 < port < 2**16:
            raise FerdError(f"--port {port}: must be from 1 to {2**16 - 1}")
        settings, local = params.read(), not store.startswith("http")
        if local:
            require_free(port)
        links = {name: link for name in settings.benchmarks if (link := record.complete(name, settings))}
        if local:
            serve(store, port, links)
        else:
            show(address(), links)


def show(server: str, links: dict[str, str]) -> None:
    """Print where the record and each benchmark's γ comparison are, and open the first of these."""
    print(f"MLflow: {server}", flush=True)
    for name, link in links.items():
        print(f"γ on {name}: {server}{link}", flush=True)
    if sys.platform == "darwin" or any(os.environ.get(name) for name in SCREENS):
        webbrowser.open(server + next(iter(links.values()), ""))


def require_free(port: int) -> None:
    """Refuse what a server would fail by, before the record is completed, which takes longer.

    Raises:
        FerdError: the port is taken, or a file is where its log belongs.
    """
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise FerdError(f"port {port} is taken; stop what listens there, or give another by --port")
    try:
        LOG.parent.mkdir(exist_ok=True)
    except FileExistsError:
        raise FerdError(f"{LOG.parent}: a file where a folder belongs; move it away") from None


def serve(store: str, port: int, links: dict[str, str]) -> None:
    """MLflow's own server for a local store, seen from this machine alone, until it ends.

    Raises:
        FerdError: it does not start.
    """
    served = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--workers", "1"]
    settings = {  # the store, too: a command line, which everybody can read, must not show its password
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with LOG.open("w", encoding="utf-8") as log:
        server = subprocess.Popen(
            command, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_until_it_answers(server, served)
        show(served, links)
        print("stop with Ctrl-C", flush=True)
        server.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)  # its workers, too
        server.wait()


def _wait_until_it_answers(server: subprocess.Popen[bytes], served: str) -> None:
    for _ in range(10 * START_SECONDS):
        try:
            with urllib.request.urlopen(f"{served}/health", timeout=5):
                pass
            return
        except OSError:
            pass
        if server.poll() is not None:
            raise FerdError(f"MLflow did not start: {_last_line()}; see {LOG}")
        time.sleep(0.1)
    raise FerdError(f"MLflow does not answer on {served} after {START_SECONDS} s; see {LOG}")


def _last_line() -> str:
    lines = LOG.read_text("utf-8").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


if __name__ == "__main__":
    main()
