"""Browse the record: ``python -m tasks.browse`` completes it, starts MLflow and opens the γ comparison."""

import argparse
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path

from ferd.errors import FerdError
from tasks import params, record, tracking

HOST, PORT = "127.0.0.1", 5000
LOG = Path("logs/mlflow.log")
START_SECONDS = 120


def main() -> None:
    """Open a server that is set by ``MLFLOW_TRACKING_URI``, or serve the local store until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=PORT)
    port = parser.parse_args().port
    store = os.environ.get("MLFLOW_TRACKING_URI", tracking.DEFAULT_STORE)
    try:
        settings = params.read()
        links = {name: link for name in settings.benchmarks if (link := record.complete(name, settings))}
        if store.startswith("http"):
            show(store, links)
        else:
            serve(store, port, links)
    except FerdError as error:
        sys.exit(f"browse: {error}")
    except KeyboardInterrupt:
        sys.exit(0)


def show(address: str, links: dict[str, str]) -> None:
    """Print where the record and each benchmark's γ comparison are, and open the first of these."""
    print(f"MLflow: {address}", flush=True)
    for name, link in links.items():
        print(f"γ on {name}: {address}{link}", flush=True)
    webbrowser.open(address + next(iter(links.values()), ""))


def serve(store: str, port: int, links: dict[str, str]) -> None:
    """MLflow's own server for a local store, seen from this machine alone, until it ends.

    Raises:
        FerdError: it does not start.
    """
    address = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", store]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("w") as log:
        server = subprocess.Popen(command, env=os.environ | quiet, stdout=log, stderr=log)
    try:
        _wait_until_it_answers(server, address)
        show(address, links)
        print("stop with Ctrl-C", flush=True)
        server.wait()
    finally:
        server.terminate()
        server.wait()


def _wait_until_it_answers(server: subprocess.Popen[bytes], address: str) -> None:
    for _ in range(10 * START_SECONDS):
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                pass
            if server.poll() is None:
                return
        except (urllib.error.URLError, OSError):
            pass
        if server.poll() is not None:
            raise FerdError(f"MLflow did not start: {_last_line()}; see {LOG}; is the port in use?")
        time.sleep(0.1)
    raise FerdError(f"MLflow does not answer on {address} after {START_SECONDS} s; see {LOG}")


def _last_line() -> str:
    lines = LOG.read_text().strip().splitlines()
    return lines[-1] if lines else "it said nothing"


if __name__ == "__main__":
    main()
