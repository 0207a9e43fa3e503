"""The real services, started once by the project's own launcher, and a worker in a tiny workspace."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest
from dotenv import dotenv_values

from ferd.errors import FerdError
from infra import passwords, postgres, stack
from infra.settings import PORTS
from tests.conftest import (
    ROOT,
    environment,
    free_ports,
    keep_digits_alone,
    make_workspace,
    run_in,
    wait_until,
)

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
SHELL = {  # of the person who starts them, of another database, of Amazon's S3; no locale of this machine
    "LC_ALL": "xx_XX.UTF-8",
    "PGSSLMODE": "verify-full",
    "AWS_SESSION_TOKEN": "of-amazon",
    "AWS_PROFILE": "of-amazon",
}
PLANTED = "planted-secret-0123456789"  # the S3 secret of these services: nothing that is kept may show it


@dataclass(frozen=True)
class Services:
    """The running stack; its worker runs flows in ``workspace``."""

    folder: Path
    workspace: Path
    environment: dict[str, str]
    started_with: dict[str, str]

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """Run a command that must succeed, as a person who uses these services; -> what it prints."""
        done = run_in(cwd or self.workspace, *command, **self.environment | variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def api(self, path: str, body: Any | None = None, method: str | None = None) -> Any:
        """Ask Prefect's server; with a body by POST."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.environment['PREFECT_API_URL']}{path}",
            data=data,
            headers={
                "Content-Type": "application/json",
                **passwords.authorization(self.environment[passwords.LOGIN]),
            },
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def submit(
        self,
        deployment: str,
        workspace: Path | None = None,
        scheduled: str | None = None,
        **parameters: Any,
    ) -> str:
        """Ask for a run of a deployment, ``flow/name``, in the worker's workspace or another; -> its id.

        At once, or as if it had been scheduled for a time, in ISO format.
        """
        found = self.api(f"/deployments/name/{deployment}")
        place = {"env": {"FERD_WORKSPACE": str(workspace or self.workspace)}}
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": scheduled} if scheduled else {}}
        body = {"parameters": parameters, "state": state, "job_variables": place}
        return self.api(f"/deployments/{found['id']}/create_flow_run", body)["id"]

    def state(self, run: str) -> str:
        """A flow run's state."""
        return self.api(f"/flow_runs/{run}")["state_type"]

    def message(self, run: str) -> str:
        """What a flow run's state says."""
        return self.api(f"/flow_runs/{run}")["state"]["message"]

    def wait(self, run: str, seconds: float = 600) -> str:
        """Wait for a flow run's end; -> its state."""
        seen = []

        def has_ended() -> bool:
            with suppress(OSError, HTTPException):  # of a server that restarts, or is slow
                seen.append(self.state(run))
            return seen[-1:] != [] and seen[-1] in FINAL

        wait_until(has_ended, seconds, lambda: self.log())
        return seen[-1]

    def log(self, program: str = "worker") -> str:
        """A service's log."""
        return (self.folder / "logs" / f"{program}.log").read_text()

    def restart(self, program: str) -> None:
        """Stop one of the services and start it again; wait until Prefect can be used."""
        with stack.control(self.folder) as supervisor:
            supervisor.stopProcess(program)
            supervisor.startProcess(program)
        wait_until(self.prefect_answers, 120, lambda: self.log("prefect"))

    def prefect_answers(self) -> bool:
        """Whether Prefect's server, and its database, can be used."""
        try:
            self.api("/ready")
        except OSError:
            return False
        return True

    def program(self, name: str) -> dict[str, Any]:
        """What supervisord knows of one of the services: ``pid``, ``statename``, ..."""
        with stack.control(self.folder) as supervisor:
            return supervisor.getProcessInfo(name)

    @contextmanager
    def worker(self, workspace: Path, name: str, **variables: str) -> Iterator[subprocess.Popen]:
        """One more worker, in another workspace, as on another machine."""
        pool = self.environment["WORK_POOL"]
        command = [
            sys.executable,
            "-m",
            "prefect",
            "worker",
            "start",
            "--pool",
            pool,
            "--work-queue",
            "stages",
        ]
        command += ["--name", name]
        own = environment() | self.environment | {"FERD_WORKSPACE": str(workspace)} | variables
        with (
            (workspace / f"{name}.log").open("w") as log,
            subprocess.Popen(command, cwd=workspace, env=own, stdout=log, stderr=log) as process,
        ):
            try:
                yield process
            finally:
                process.terminate()
                try:
                    process.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()


def make_clone(folder: Path) -> Path:
    """A tiny workspace of ``digits``: a Git repository with one commit, with all that a worker needs."""
    keep_digits_alone(make_workspace(folder))
    shutil.copytree(ROOT / "infra", folder / "infra", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", folder / "prefect.yaml")
    commit(folder, "tiny")
    return folder


def commit(folder: Path, message: str) -> None:
    """Commit everything."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["add", "--all"], [*identity, "commit", "--quiet", "--message", message]):
        done = run_in(folder, "git", *command)
        assert done.returncode == 0, done.stdout + done.stderr


def processes_below(folder: Path) -> list[psutil.Process]:
    """Processes whose working directory is the folder, or in it."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        cwd = process.info["cwd"]
        if cwd and Path(cwd).is_relative_to(folder):
            found.append(process)
    return found


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """PostgreSQL, an S3 endpoint, MLflow, Prefect and a worker; ports and folders of their own."""
    try:
        postgres.postgres_binaries(tmp_path_factory.mktemp("no-cluster"))
    except FerdError as error:
        pytest.skip(str(error))
    workspace = make_clone(tmp_path_factory.mktemp("services") / "workspace")
    folder = Path(tempfile.mkdtemp(prefix="ferd-stack-"))
    folder.chmod(0o755)  # PostgreSQL's own user works in it
    own = environment() | dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    own |= {
        "STACK_FOLDER": str(folder),
        "NIGHTLY_CRON": f"0 {(datetime.now(UTC).hour + 12) % 24} * * *",  # no night among the tests' own runs
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": PLANTED,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        "PYTHONPATH": str(workspace),
    }
    command = [sys.executable, "-m", "infra.stack"]
    try:
        up = subprocess.run(
            [*command, "up"], cwd=workspace, env=own | SHELL, capture_output=True, text=True, check=False
        )
        assert up.returncode == 0, up.stdout + up.stderr
        exported = dotenv_values(folder / "environment.sh")
        kept = ("NIGHTLY_CRON", "PREFECT_HOME", "PREFECT_WORKER_QUERY_SECONDS", "STACK_FOLDER")
        yield Services(folder, workspace, exported | {key: own[key] for key in kept}, own)
    finally:
        subprocess.run([*command, "down"], cwd=workspace, env=own, capture_output=True, check=False)
        left = processes_below(folder) + processes_below(workspace)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
    assert [process.info["cmdline"] for process in left] == [], os.linesep.join(map(str, left))


@pytest.fixture(scope="session")
def reproduced(services: Services) -> Services:
    """The services after their worker has run the deployment ``reproduce`` for one student."""
    run = services.submit("reproduce/reproduce", benchmark="digits", methods=["uniform-noise"], seeds=[0])
    assert services.wait(run) == "COMPLETED", services.log()
    return services
