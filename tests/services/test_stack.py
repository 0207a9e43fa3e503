"""The services as a person starts them: on the loopback, once, and with no secret in what they keep."""

import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from dotenv import dotenv_values

from tests.services.conftest import PLANTED

pytestmark = pytest.mark.services

STACK = (sys.executable, "-m", "infra.stack")
RECORD = """
from mlflow import MlflowClient
client = MlflowClient()
for experiment in client.search_experiments():
    for run in client.search_runs([experiment.experiment_id]):
        print(run.to_dictionary())
"""


def family(services) -> list[psutil.Process]:
    """supervisord and all that it started."""
    root = psutil.Process(int((services.folder / "supervisord.pid").read_text()))
    return [root, *root.children(recursive=True)]


def test_everything_listens_on_the_loopback_alone(services):
    listening = [
        connection.laddr.ip
        for process in family(services)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 4
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_a_second_start_finds_everything_running(services):
    before = {process.pid for process in family(services)}
    services.run(*STACK, "up", **services.started_with)
    assert before <= {process.pid for process in family(services)}
    status = services.run(*STACK, "status", **services.started_with)
    assert status.count("RUNNING") == 5


def test_a_port_that_is_taken_is_said_in_one_line(services, tmp_path):
    taken = services.started_with | {"STACK_FOLDER": str(tmp_path)}
    tmp_path.chmod(0o755)
    refused = subprocess.run(
        [*STACK, "up"], cwd=services.workspace, env=taken, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("stack: ")
    assert len(refused.stderr.splitlines()) == 1


def test_no_secret_is_in_logs_records_results_or_command_lines(reproduced):
    secrets = dotenv_values(reproduced.folder / "secrets.env")
    assert secrets["AWS_SECRET_ACCESS_KEY"] == PLANTED
    planted = [PLANTED, secrets["POSTGRES_PASSWORD"]]
    private = [reproduced.folder / name for name in ("secrets.env", "environment.sh", "pgpass")]
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    places = [reproduced.workspace, reproduced.folder / "logs", reproduced.folder / "prefect"]
    kept = {str(path): path.read_bytes() for place in places for path in files(place)}
    kept["MLflow"] = reproduced.run(sys.executable, "-c", RECORD).encode()
    kept["Prefect's logs"] = repr(reproduced.api("/logs/filter", {"limit": 200})).encode()
    kept["Prefect's runs"] = repr(reproduced.api("/flow_runs/filter", {})).encode()
    kept["Prefect's deployments"] = repr(reproduced.api("/deployments/filter", {})).encode()
    kept["command lines"] = repr([process.cmdline() for process in family(reproduced)]).encode()
    assert b"resnet8-w8/uniform-noise/s0" in kept["MLflow"]
    assert b"Finished in state" in kept["Prefect's logs"]
    shown = [name for name, content in kept.items() for secret in planted if secret.encode() in content]
    assert shown == []


def files(place: Path) -> list[Path]:
    """Every file below a folder."""
    return [path for path in place.glob("**/*") if path.is_file() and not path.is_symlink()]
