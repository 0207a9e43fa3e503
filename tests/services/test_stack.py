"""The services as a person starts them: on the loopback, once, and with no secret in what they keep."""

import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil
import pytest
from dotenv import dotenv_values

from ferd.errors import FerdError
from infra import passwords
from infra.postgres import Postgres
from infra.stack import PROGRAMS, Stack
from tests.conftest import free_port, run_in
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


def of_all(services, question: Callable[[psutil.Process], Any]) -> list[Any]:
    """Answers of supervisord and all that it started, but for those that end meanwhile."""
    answers, root = [], supervisord(services)
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            answers.append(question(process))
    return answers


def lasting(services) -> set[psutil.Process]:
    """supervisord and the five programs; what these start (PostgreSQL's backends, say) comes and goes."""
    root = supervisord(services)
    return {root, *root.children()}


def supervisord(services) -> psutil.Process:
    return psutil.Process(int((services.folder / "supervisord.pid").read_text()))


def test_everything_listens_on_the_loopback_alone(services):
    listening = [
        connection.laddr.ip
        for connections in of_all(services, lambda process: process.net_connections(kind="inet"))
        for connection in connections
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 4
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_the_object_store_keeps_its_log_and_sockets_with_the_others(services):
    (weed,) = [process for process in lasting(services) if "weed" in process.name()]
    named = [Path(entry.path) for entry in weed.open_files()]
    assert not [path for path in named if path.is_relative_to(tempfile.gettempdir()) and "weed" in path.name]
    assert {"s3.sock", "filer.sock"} <= {path.name for path in services.folder.iterdir()}
    assert "Start Seaweed" in services.log("s3") and "anonymous" not in services.log("s3")
    assert stat.S_IMODE((services.folder / "logs").stat().st_mode) == 0o700


def test_a_second_start_finds_everything_running(services):
    before = lasting(services)
    services.run(*STACK, "up", **services.started_with)
    assert before == lasting(services)
    status = services.run(*STACK, "status", **services.started_with)
    assert [line.split(";")[0].split() for line in status.splitlines()] == [
        [name, "RUNNING", "answers"] for name in sorted(PROGRAMS)
    ]


def test_a_service_that_runs_and_does_not_answer_is_not_well(services):
    postmaster = psutil.Process(services.program("postgresql")["pid"])
    postmaster.suspend()
    try:
        done = run_in(services.workspace, *STACK, "status", **services.started_with)
    finally:
        postmaster.resume()
    assert done.returncode == 1
    assert "postgresql  RUNNING   does not answer;" in done.stdout


def refused(services, **variables: str) -> str:
    """The one line by which a start refuses these variables."""
    done = subprocess.run(
        [*STACK, "up"],
        cwd=services.workspace,
        env=services.started_with | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_a_port_that_is_taken_is_said_in_one_line(services, tmp_path):
    tmp_path.chmod(0o755)
    assert "is taken" in refused(services, STACK_FOLDER=str(tmp_path))
    assert not (tmp_path / "secrets.env").exists()


def test_other_settings_than_what_runs_are_refused_and_change_nothing(services):
    files = [services.folder / name for name in ("environment.sh", "pgpass", "secrets.env")]
    before = [path.read_bytes() for path in files]
    port = str(free_port())
    for name in ("MLFLOW_PORT", "POSTGRES_PORT"):
        said = f"runs with {name}={services.started_with[name]!r}, not {port!r}: `make down` first"
        assert said in refused(services, **{name: port})
    assert "POSTGRES_PASSWORD" in refused(services, POSTGRES_PASSWORD="another")
    said = refused(services, FERD_ALERT_WEBHOOK="https://chat.example/a-secret", FERD_DATA="/other")
    assert "runs with another FERD_DATA than there is now; another FERD_ALERT_WEBHOOK than" in said
    assert "secret" not in said
    said = refused(services, FERD_WORKSPACE="/another", MLFLOW_TRACKING_PASSWORD="a-secret")
    assert "FERD_WORKSPACE=" in said and "not '/another'; another MLFLOW_TRACKING_PASSWORD than" in said
    assert "a-secret" not in said
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize("key", ["POSTGRES_PASSWORD", passwords.LOGIN])
def test_a_password_that_was_changed_while_the_services_run_is_refused(services, key):
    kept = services.folder / "secrets.env"
    before, login = kept.read_text(), (services.folder / "pgpass").read_text()
    kept.write_text(re.sub(rf"^({key}=.*?)('?)$", r"\1x\2", before, flags=re.M))
    try:
        assert f"runs with another {key} than there is now: `make down` first" in refused(services)
        assert (services.folder / "pgpass").read_text() == login
    finally:
        kept.write_text(before)


def test_another_password_than_the_cluster_has_is_said_in_one_line(services, tmp_path, monkeypatch):
    for name, value in services.started_with.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STACK_FOLDER", str(tmp_path))
    login = (services.folder / "pgpass").read_text()
    (tmp_path / "pgpass").write_text(login)
    (tmp_path / "pgpass").chmod(0o600)
    assert Postgres(Stack().folder, Stack().settings).answers()
    (tmp_path / "pgpass").write_text(login.replace(login.split(":")[-1], "another\n"))
    with pytest.raises(
        FerdError,
        match=r"secrets\.env: not the POSTGRES_PASSWORD of .*postgresql, or another POSTGRES_USER than ferd",
    ):
        Postgres(Stack().folder, Stack().settings).answers()


def test_prefects_server_does_nothing_for_who_has_not_its_password(services):
    assert services.api("/version")
    for login in ("ferd:another", ""):
        stranger = replace(services, environment=services.environment | {passwords.LOGIN: login})
        with pytest.raises(HTTPError, match="401"):
            stranger.api("/deployments/filter", {})


def test_a_flow_without_prefects_password_is_refused_in_one_line(services):
    flow = (sys.executable, "-m", "flows.reproduce", "--benchmark", "digits")
    done = run_in(services.workspace, *flow, **services.environment | {passwords.LOGIN: "ferd:another"})
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (
        2,
        [
            f"reproduce: {services.environment['PREFECT_API_URL']} asks for another name and password; "
            "set PREFECT_API_AUTH_STRING to those of its `.stack/environment.sh`"
        ],
    )
    assert "Traceback" not in done.stderr


def test_deployments_are_made_known_with_the_password_alone(services):
    own = services.environment | {"STACK_FOLDER": str(services.folder / "none")}
    assert not services.run(*STACK, "deploy", **own)
    done = run_in(services.workspace, *STACK, "deploy", **own | {passwords.LOGIN: ""})
    assert (done.returncode, done.stderr) == (
        2,
        f"stack: Prefect's server at {own['PREFECT_API_URL']} asks for another PREFECT_API_AUTH_STRING than "
        "this shell has; set that server's\n",
    )
    nightly = services.api("/deployments/name/nightly/nightly")
    (schedule,) = nightly["schedules"]
    assert schedule["schedule"]["cron"] == services.started_with["NIGHTLY_CRON"]


def test_no_secret_is_in_logs_records_results_or_command_lines(reproduced):
    secrets = dotenv_values(reproduced.folder / "secrets.env")
    assert secrets["AWS_SECRET_ACCESS_KEY"] == PLANTED
    planted = [PLANTED, secrets["POSTGRES_PASSWORD"], secrets[passwords.LOGIN].partition(":")[2]]
    private = [reproduced.folder / name for name in ("secrets.env", "environment.sh", "pgpass")]
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    places = [reproduced.workspace, reproduced.folder / "logs", reproduced.folder / "prefect"]
    kept = {str(path): path.read_bytes() for place in places for path in files(place)}
    kept["MLflow"] = reproduced.run(sys.executable, "-c", RECORD).encode()
    kept["Prefect's logs"] = repr(reproduced.api("/logs/filter", {"limit": 200})).encode()
    kept["Prefect's runs"] = repr(reproduced.api("/flow_runs/filter", {})).encode()
    kept["Prefect's deployments"] = repr(reproduced.api("/deployments/filter", {})).encode()
    kept["command lines"] = repr(of_all(reproduced, psutil.Process.cmdline)).encode()
    assert b"resnet8-w8/uniform-noise/s0" in kept["MLflow"]
    assert b"Finished in state" in kept["Prefect's logs"]
    shown = [name for name, content in kept.items() for secret in planted if secret.encode() in content]
    assert shown == []


def files(place: Path) -> list[Path]:
    """Every file below a folder."""
    return [path for path in place.glob("**/*") if path.is_file() and not path.is_symlink()]
