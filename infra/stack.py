"""The whole stack as plain local processes: ``python -m infra.stack up``, ``down``, ``status``.

PostgreSQL, an S3 endpoint, MLflow, Prefect's server and one worker, all on the loopback. supervisord keeps
them running (``infra/supervisord.conf``); this module prepares what they need, starts them in order, waits
until they answer, and deploys ``prefect.yaml``. Ports and names: ``infra/stack.env``. State, logs and
generated passwords: the folder ``.stack`` (or ``STACK_FOLDER``).
"""

import argparse
import os
import pwd
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import xmlrpc.client
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from dotenv import dotenv_values

from ferd.errors import FerdError
from ferd.files import atomic_write
from infra import bucket

HERE = Path(__file__).parent
CONFIGURATION = HERE / "supervisord.conf"
SECRETS = ("POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
PATIENCE_SECONDS = 300.0  # a busy machine creates the tables slowly
POLL_SECONDS = 0.25


class Stack:
    """The services of one folder.

    ``settings`` are those of ``infra/stack.env``, the environment's first, and what follows from them.
    """

    def __init__(self) -> None:
        listed = {key: value or "" for key, value in dotenv_values(HERE / "stack.env").items()}
        self.settings = {key: os.environ.get(key, value) for key, value in listed.items()}
        self.folder = Path(os.environ.get("STACK_FOLDER", ".stack")).resolve()
        self.workspace = Path(os.environ.get("FERD_WORKSPACE", ".")).resolve()
        self.environment_file = self.folder / "environment.sh"

    @property
    def client_environment(self) -> dict[str, str]:
        """What a shell, a worker or a stage needs to use the services; not the database's password."""
        settings = self.settings
        return {
            "PREFECT_API_URL": f"http://127.0.0.1:{settings['PREFECT_PORT']}/api",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{settings['MLFLOW_PORT']}",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{settings['S3_PORT']}",
            "AWS_DEFAULT_REGION": settings["AWS_DEFAULT_REGION"],
            "WORK_POOL": settings["WORK_POOL"],
            **{key: value for key, value in self.secrets().items() if key.startswith("AWS_")},
        }

    def secrets(self) -> dict[str, str]:
        """Passwords: the environment's, else those of an earlier start, else new ones; kept for this user."""
        path = self.folder / "secrets.env"
        kept = dotenv_values(path) if path.exists() else {}
        values = {key: os.environ.get(key) or kept.get(key) or secrets.token_hex(16) for key in SECRETS}
        if values != kept:
            _write_private(path, "".join(f"{key}={value}\n" for key, value in values.items()))
        return values

    def up(self) -> None:
        """Start what is not running, wait until it answers, deploy ``prefect.yaml``."""
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        postgres = Postgres(self)
        postgres.initialise()
        _write_private(
            self.environment_file,
            "".join(f"export {key}={shlex.quote(value)}\n" for key, value in self.client_environment.items()),
        )
        self._start_supervisor(postgres)
        self._start({"postgresql": postgres.answers, "s3": self._bucket_exists})
        postgres.create_databases()
        self._start(
            {
                "mlflow": lambda: _answers(f"{self.client_environment['MLFLOW_TRACKING_URI']}/health"),
                "prefect": lambda: _answers(f"{self.client_environment['PREFECT_API_URL']}/ready"),
            }
        )
        self.deploy()
        self._start({"worker": self._worker_is_online})
        print(f"MLflow:  {self.client_environment['MLFLOW_TRACKING_URI']}")
        print(f"Prefect: {self.client_environment['PREFECT_API_URL'].removesuffix('/api')}")
        print(f"logs:    {self.folder / 'logs'}")
        print(f"to use them from a shell: . {self.environment_file}")

    def down(self) -> None:
        """Stop everything, the worker first; what is stored stays."""
        with control(self.folder) as supervisor:
            if supervisor is None:
                print("nothing is running")
                return
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int((self.folder / "supervisord.pid").read_text()))
                supervisor.shutdown()
                process.wait(timeout=PATIENCE_SECONDS)
        print("stopped")

    def status(self) -> bool:
        """Print a line a service; -> whether all of them run."""
        with control(self.folder) as supervisor:
            programs = supervisor.getAllProcessInfo() if supervisor else []
        for program in programs:
            print(f"{program['name']:<11} {program['statename']:<9} {program['description']}")
        if not programs:
            print("nothing is running")
        return bool(programs) and all(program["statename"] == "RUNNING" for program in programs)

    def _runs(self) -> bool:
        with control(self.folder) as supervisor:
            return supervisor is not None

    def _start_supervisor(self, postgres: "Postgres") -> None:
        if self._runs():
            return
        for name in ("POSTGRES_PORT", "S3_PORT", "MLFLOW_PORT", "PREFECT_PORT"):
            _refuse_taken(name, int(self.settings[name]))
        environment = {
            **{key: value for key, value in os.environ.items() if key not in SECRETS},
            **self.settings,
            **self.client_environment,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "STACK_FOLDER": str(self.folder),
            "FERD_WORKSPACE": str(self.workspace),
            "POSTGRES_BINARIES": str(postgres.binaries),
            "POSTGRES_OS_USER": postgres.os_user,
            "S3_COMMAND": self._s3_command(),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # six processes, for judging texts
            "DO_NOT_TRACK": "1",
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(CONFIGURATION)]
        started = subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, check=False
        )
        if started.returncode:
            raise FerdError(f"supervisord: {' '.join((started.stderr or started.stdout).split())}")
        _wait_until("supervisord", self._runs, self.folder / "logs/supervisord.log")

    def _start(self, programs: Mapping[str, Callable[[], bool]]) -> None:
        """Start those that do not run, side by side, and wait until each answers."""
        began = time.monotonic()
        logs = {name: self.folder / f"logs/{name}.log" for name in programs}
        with control(self.folder) as supervisor:
            if supervisor is None:
                raise FerdError(f"supervisord has ended; see {self.folder / 'logs/supervisord.log'}")
            for name, log in logs.items():
                if supervisor.getProcessInfo(name)["statename"] not in ("RUNNING", "STARTING"):
                    try:
                        supervisor.startProcess(name)
                    except xmlrpc.client.Fault:
                        raise FerdError(f"{name} does not start; see {log}") from None
        for name, answers in programs.items():
            _wait_until(name, answers, logs[name])
            print(f"{name:<11} answers after {time.monotonic() - began:.0f} s", flush=True)

    def _s3_command(self) -> str:
        """SeaweedFS where it is installed; else moto's server, which keeps all in memory: for trial."""
        port = self.settings["S3_PORT"]
        if shutil.which("weed"):
            return (
                f"weed mini -dir={self.folder / 's3'} -ip=127.0.0.1 -ip.bind=127.0.0.1 -s3.port={port} "
                "-webdav=false -admin.ui=false -s3.port.iceberg=0"
            )
        print("s3: no SeaweedFS (weed) here; moto's server instead, FOR TRIAL: it forgets all when it stops")
        return f"moto_server -H 127.0.0.1 -p {port}"

    def _bucket_exists(self) -> bool:
        try:
            bucket.ensure(self.settings["S3_BUCKET"], self.client_environment)
        except FerdError:
            return False
        return True

    def deploy(self) -> None:
        """Make the deployments of ``prefect.yaml`` known to the server, and the work pool."""
        pool = self.settings["WORK_POOL"]
        if not _answers(f"{self.client_environment['PREFECT_API_URL']}/work_pools/{pool}"):
            self._prefect("work-pool", "create", pool, "--type", "process")
        self._prefect("--no-prompt", "deploy", "--all")

    def _prefect(self, *arguments: str) -> None:
        environment = {**os.environ, **self.settings, **self.client_environment}
        environment.pop("FERD_WORKSPACE", None)  # each worker's own: not to be fixed by who deploys
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=self.workspace,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())
            raise FerdError(f"prefect {' '.join(arguments)}: {said}")

    def _worker_is_online(self) -> bool:
        pool = f"{self.client_environment['PREFECT_API_URL']}/work_pools/{self.settings['WORK_POOL']}"
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{pool}/workers/filter", data=b"{}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return b'"ONLINE"' in answer.read()
        except OSError:
            return False


@contextmanager
def control(folder: Path) -> Iterator[Any | None]:
    """supervisord's own interface (``.stopProcess("worker")``, ...); None where it does not run."""
    from supervisor.xmlrpc import SupervisorTransport

    transport = SupervisorTransport(None, None, f"unix://{folder / 'supervisor.sock'}")
    with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as proxy:
        try:
            proxy.supervisor.getState()
        except (OSError, xmlrpc.client.Error):
            yield None
        else:
            yield proxy.supervisor


class Postgres:
    """A PostgreSQL cluster below the stack's folder, run by a user who is not root."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.data = stack.folder / "postgresql"
        self.binaries = postgres_binaries()
        self.os_user = _unprivileged_user()

    def initialise(self) -> None:
        """Create the cluster, and the file by which MLflow and Prefect log in, where they are not there."""
        settings, password = self._stack.settings, self._stack.secrets()["POSTGRES_PASSWORD"]
        escaped = password.replace("\\", "\\\\").replace(":", "\\:")
        login = f"127.0.0.1:{settings['POSTGRES_PORT']}:*:{settings['POSTGRES_USER']}:{escaped}\n"
        _write_private(self._stack.folder / "pgpass", login)
        if (self.data / "PG_VERSION").exists():
            return
        account = pwd.getpwnam(self.os_user)
        other: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self.data.mkdir(mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile("w") as password_file:
            password_file.write(password)
            password_file.flush()
            for path in (self.data, password_file.name):
                os.chown(path, account.pw_uid, account.pw_gid)
            done = subprocess.run(
                [
                    *(
                        self.binaries / "initdb",
                        "--pgdata",
                        self.data,
                        "--username",
                        settings["POSTGRES_USER"],
                    ),
                    *("--auth", "scram-sha-256", "--encoding", "UTF8", "--pwfile", password_file.name),
                ],
                cwd="/",
                capture_output=True,
                text=True,
                check=False,
                **(other if os.geteuid() == 0 else {}),
            )
        if done.returncode:
            shutil.rmtree(self.data)
            said = " ".join(done.stderr.split())
            raise FerdError(
                f"{self.data}: the user {self.os_user} can make no PostgreSQL cluster there: {said}; "
                "set STACK_FOLDER to a folder that this user can reach"
            )

    def answers(self) -> bool:
        """Whether one can log in."""
        import psycopg2

        try:
            self._connect().close()
        except psycopg2.OperationalError:
            return False
        return True

    def create_databases(self) -> None:
        """MLflow's and Prefect's, where they are not there."""
        from psycopg2 import sql

        with closing(self._connect()) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            for name in (self._stack.settings["MLFLOW_DATABASE"], self._stack.settings["PREFECT_DATABASE"]):
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
                if cursor.fetchone() is None:
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def _connect(self) -> Any:
        import psycopg2

        return psycopg2.connect(
            host="127.0.0.1",
            port=self._stack.settings["POSTGRES_PORT"],
            user=self._stack.settings["POSTGRES_USER"],
            dbname="postgres",
            passfile=str(self._stack.folder / "pgpass"),
            connect_timeout=5,
        )


def postgres_binaries() -> Path:
    """Where ``postgres`` is: on PATH, or in Debian's place for it."""
    found = shutil.which("postgres")
    places = [Path(found).parent] if found else []
    places += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True
    )
    for place in places:
        if (place / "initdb").exists():
            return place
    raise FerdError(
        "PostgreSQL's server is not installed; `apt-get install postgresql` or `brew install postgresql`"
    )


def _unprivileged_user() -> str:
    """This user, or, since PostgreSQL refuses root, the first of ``postgres`` and ``nobody`` that exists."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.touch(mode=0o600)
        part.write_text(text)


def _refuse_taken(name: str, port: int) -> None:
    with closing(socket.socket()) as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise FerdError(f"port {port} is taken; set {name} in infra/stack.env or in the environment")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _wait_until(name: str, answers: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not answers():
        if time.monotonic() > deadline:
            raise FerdError(f"{name} does not answer within {PATIENCE_SECONDS:.0f} s; see {log}")
        time.sleep(POLL_SECONDS)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", choices=["up", "down", "status", "deploy", "secrets"])
    stack = Stack()
    try:
        match parser.parse_args().command:
            case "up":
                stack.up()
            case "down":
                stack.down()
            case "status":
                sys.exit(not stack.status())
            case "deploy":
                stack.deploy()
            case "secrets":
                stack.secrets()
    except FerdError as error:
        sys.exit(f"stack: {error}")


if __name__ == "__main__":
    main()
