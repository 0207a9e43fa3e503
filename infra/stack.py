"""The whole stack as plain local processes: ``python -m infra.stack up``, ``down``, ``status``.

PostgreSQL, an S3 endpoint, MLflow, Prefect's server and one worker, all on the loopback. supervisord keeps
them running (``infra/supervisord.conf``); this module prepares what they need, starts them in order, waits
until they answer, and deploys ``prefect.yaml``. Ports and names: ``infra/stack.env``. State, logs and
generated passwords: the folder ``.stack`` (or ``STACK_FOLDER``).
"""

import argparse
import http.client
import json
import os
import pwd
import re
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
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from dotenv import dotenv_values

from ferd.errors import FerdError, Unreachable
from ferd.files import atomic_write
from infra import bucket, processes
from tasks.command import as_command, without_password
from tasks.locks import held

HERE = Path(__file__).parent
PART = "postgresql.part-"
CONFIGURATION = HERE / "supervisord.conf"
PROGRAMS = ("postgresql", "s3", "mlflow", "prefect", "worker")  # in the order of their start
PORTS = ("POSTGRES_PORT", "S3_PORT", "MLFLOW_PORT", "PREFECT_PORT")
DATABASES = ("MLFLOW_DATABASE", "PREFECT_DATABASE")
NAMES = (*DATABASES, "POSTGRES_USER", "WORK_POOL")
LEAST = {"FLOW_RUNS_AT_A_TIME": 1, "SILENT_RUN_SECONDS": 10}  # the second: Prefect looks that often
LOGIN = "PREFECT_API_AUTH_STRING"  # what Prefect's clients send: a name, a colon and a password
SECRETS = ("POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", LOGIN)
CHANGE = "set it in infra/stack.env or in the environment"
PATIENCE_SECONDS = 300.0  # a busy machine creates the tables slowly
POLL_SECONDS = 0.25
LONGEST_SOCKET = 95  # bytes of its name: Linux takes 107, macOS 103; supervisord adds its process's number


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
            **{key: value for key, value in self.secrets().items() if key != "POSTGRES_PASSWORD"},
        }

    def secrets(self) -> dict[str, str]:
        """Passwords: those of an earlier start, else the environment's, else new ones; kept for this user.

        Raises:
            FerdError: the environment has others than those kept, or those of a cluster are gone.
        """
        path = self.folder / "secrets.env"
        kept = dotenv_values(path, interpolate=False) if path.exists() else {}
        given = {key: os.environ[key] for key in SECRETS if os.environ.get(key)}
        other = [key for key, value in given.items() if (kept.get(key) or value) != value]
        if other:
            raise FerdError(
                f"{path} keeps another {' and '.join(other)} than the environment has; "
                f"unset {' '.join(other)} in this shell"
            )
        if not kept.get("POSTGRES_PASSWORD") and (self.folder / "postgresql").exists():
            raise FerdError(
                f"{path} is without the POSTGRES_PASSWORD of {self.folder / 'postgresql'}; bring it back "
                f"({self.folder / 'pgpass'} has it too), or move that folder away"
            )
        values = {key: kept.get(key) or given.get(key) or _made_up(key) for key in SECRETS}
        if not re.fullmatch(r"[^\s:\\]+", values["POSTGRES_PASSWORD"]):
            raise FerdError(
                "POSTGRES_PASSWORD: no space, : or \\ in it, since asyncpg cannot read them; set another"
            )
        if not re.fullmatch(r"[^\s:%\"\\]+:[^\s%\"\\]+", values[LOGIN]):
            raise FerdError(
                f'{LOGIN}: not NAME:PASSWORD without space, %, " and \\, which supervisord cannot hand on; '
                "set another"
            )
        if values != kept:
            _write_private(path, "".join(f"{key}={_quoted(value)}\n" for key, value in values.items()))
            taken = [key for key in given if not kept.get(key)]
            if taken:
                print(f"{path}: keeps the environment's {' and '.join(taken)}")
        return values

    def keep_secrets(self) -> None:
        """Make the passwords where they are not there, for Docker."""
        with self._locked():
            self.secrets()
            self._keep_environment()

    def up(self) -> None:
        """Start what is not running, wait until it answers, deploy ``prefect.yaml``.

        Raises:
            FerdError: a setting cannot be, or something that runs is in the way: nothing has changed; or
                a service does not start.
        """
        self._check_settings()
        with self._locked():
            self._up()

    def _up(self) -> None:
        self._refuse_what_runs()
        self.secrets()
        postgres = Postgres(self)
        postgres.initialise()
        self._keep_environment()
        self._start_supervisor(postgres)
        self._start("postgresql", "s3")
        postgres.create_databases()
        bucket.ensure(self.settings["S3_BUCKET"], self.client_environment)
        self._start("mlflow", "prefect")
        self._deploy(self.client_environment)
        self._start("worker")
        print(f"MLflow:  {self.client_environment['MLFLOW_TRACKING_URI']}")
        print(
            f"Prefect: {self.client_environment['PREFECT_API_URL'].removesuffix('/api')} "
            f"(its page asks for {LOGIN} of {self.environment_file})"
        )
        print(f"logs:    {self.folder / 'logs'}")
        print(f"to use them from a shell: . {shlex.quote(str(self.environment_file))}")

    def down(self) -> None:
        """End everything, the worker first; what is stored stays."""
        if not processes.running(self.folder):
            print("nothing is running")
            return
        for program in ("supervisord", *reversed(PROGRAMS)):  # the first ends the others, where it lives
            processes.end(self.folder, program)
        if left := processes.running(self.folder):
            raise FerdError(f"{processes.describe(left)} of {self.folder} cannot be ended; see `ps`")
        print("stopped")

    def status(self) -> bool:
        """Print a line a service; -> whether all of them run and answer."""
        with control(self.folder) as supervisor:
            programs = supervisor.getAllProcessInfo() if supervisor else []
        if not programs:
            left = processes.running(self.folder)
            print(f"supervisord does not answer; {_still(left)}" if left else "nothing is running")
            return False
        well = True
        for program in programs:
            state, lacks = program["statename"], self._lacks(program["name"])
            print(f"{program['name']:<11} {state:<9} {lacks or 'answers'}; {program['description']}")
            well = well and state == "RUNNING" and not lacks
        return well

    def _lacks(self, program: str) -> str:
        """What a program does not do that it is there for; empty where it does."""
        try:
            if not self._answering()[program]():
                return "does not answer"
            if program == "s3" and not bucket.exists(self.settings["S3_BUCKET"], self.client_environment):
                return f"answers, without the bucket {self.settings['S3_BUCKET']}: `make up` makes it"
        except FerdError as error:
            return str(error)
        return ""

    def _keep_environment(self) -> None:
        """What a shell sources."""
        text = "".join(
            f"export {key}={shlex.quote(value)}\n" for key, value in self.client_environment.items()
        )
        _write_private(self.environment_file, text)

    def _check_settings(self) -> None:
        if len(os.fsencode(self.folder / "supervisor.sock")) > LONGEST_SOCKET:
            raise FerdError(f"{self.folder}: too long for a socket in it; set STACK_FOLDER to a shorter one")
        if set(str(self.folder)) & set('%"\\\n'):  # supervisord.conf cannot hold them
            raise FerdError(f"{self.folder}: no % \" \\ or line end in a stack's folder; set STACK_FOLDER")
        for name in PORTS:
            value = self.settings[name]
            if not (value.isascii() and value.isdecimal() and 0 < int(value) < 65536):
                raise FerdError(f"{name}={value} is no port (1 to 65535); {CHANGE}")
        for name in NAMES:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", self.settings[name]):
                raise FerdError(f"{name}={self.settings[name]}: letters, digits, _ and - alone; {CHANGE}")
        for name, least in LEAST.items():
            value = self.settings[name]
            if not (value.isascii() and value.isdecimal() and int(value) >= least):
                raise FerdError(f"{name}={value} is no whole number of {least} or more; {CHANGE}")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", self.settings["S3_BUCKET"]):
            raise FerdError(
                f"S3_BUCKET={self.settings['S3_BUCKET']}: 3 to 63 small letters, digits, . and -; {CHANGE}"
            )
        for names in (PORTS, DATABASES):
            values = [self.settings[name] for name in names]
            if same := [name for name in names if values.count(self.settings[name]) > 1]:
                raise FerdError(f"{' and '.join(same)} are both {self.settings[same[0]]}; {CHANGE}")

        self._check_schedule()

    def _check_schedule(self) -> None:
        from prefect.client.schemas.schedules import CronSchedule

        cron, timezone = self.settings["NIGHTLY_CRON"], self.settings["NIGHTLY_TIMEZONE"]
        try:
            CronSchedule(cron=cron, timezone=timezone)
        except ValueError:
            raise FerdError(
                f"NIGHTLY_CRON={cron} with NIGHTLY_TIMEZONE={timezone} is no schedule such as 0 2 * * * with "
                f"UTC; {CHANGE}"
            ) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Make the folder, and keep a second ``up`` out of it."""
        path = self.folder / "lock"
        try:
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise FerdError(
                f"{error.filename}: {error.strerror}; correct the permissions, "
                "or set STACK_FOLDER to a folder that can be written"
            ) from None
        with held(path, refusal=f"another `make up` works in {self.folder}; wait for its end"):
            yield

    def _refuse_what_runs(self) -> None:
        """Other settings than these, programs without supervisord, a port's other user."""
        with control(self.folder) as supervisor:
            running = psutil.Process(supervisor.getPID()).environ() if supervisor else None
        if running is not None:
            other = [
                f"{key}={running.get(key)!r}, not {value!r}"
                for key, value in self.settings.items()
                if running.get(key) != value
            ]
            if other:
                raise FerdError(f"the stack in {self.folder} runs with {'; '.join(other)}: `make down` first")
        elif left := processes.running(self.folder):
            raise FerdError(f"supervisord does not answer; {_still(left)}")
        else:
            for name in PORTS:
                _refuse_taken(name, int(self.settings[name]))

    def _runs(self) -> bool:
        with control(self.folder) as supervisor:
            return supervisor is not None

    def _start_supervisor(self, postgres: "Postgres") -> None:
        if self._runs():
            return
        environment = {
            **{
                key: value
                for key, value in os.environ.items()
                if key not in SECRETS and not key.startswith("SUPERVISOR_")  # a supervisord above
            },
            **self.settings,
            **self.client_environment,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "STACK_FOLDER": str(self.folder),
            "FERD_WORKSPACE": str(self.workspace),
            "POSTGRES_BINARIES": str(postgres.binaries),
            "POSTGRES_OS_USER": postgres.os_user,
            processes.MARK: self._s3_command(),
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

    def _answering(self) -> dict[str, Callable[[], bool]]:
        """How to find out, by program, whether it answers."""
        services = self.client_environment
        return {
            "postgresql": Postgres(self).answers,
            "s3": self._s3_answers,
            "mlflow": partial(_answers, f"{services['MLFLOW_TRACKING_URI']}/health"),
            "prefect": partial(_answers, f"{services['PREFECT_API_URL']}/ready"),
            "worker": self._worker_is_online,
        }

    def _start(self, *programs: str) -> None:
        """Start those that do not run, side by side, and wait until each answers."""
        began = time.monotonic()
        logs = {name: self.folder / f"logs/{name}.log" for name in programs}
        with control(self.folder) as supervisor:
            if supervisor is None:
                raise FerdError(f"supervisord has ended; see {self.folder / 'logs/supervisord.log'}")
            for name, log in logs.items():
                if supervisor.getProcessInfo(name)["statename"] not in ("RUNNING", "STARTING", "BACKOFF"):
                    try:
                        supervisor.startProcess(name, False)  # waiting is done below, side by side
                    except xmlrpc.client.Fault:
                        raise FerdError(f"{name} does not start; see {log}") from None
        answering = self._answering()
        for name in programs:
            _wait_until(name, answering[name], logs[name], partial(self._refuse_given_up, name, logs[name]))
            print(f"{name:<11} answers after {time.monotonic() - began:.0f} s", flush=True)

    def _refuse_given_up(self, name: str, log: Path) -> None:
        with control(self.folder) as supervisor:
            if supervisor is None:
                raise FerdError(f"supervisord has ended; see {self.folder / 'logs/supervisord.log'}")
            if supervisor.getProcessInfo(name)["statename"] in ("FATAL", "STOPPED"):
                raise FerdError(f"{name} does not start; see {log}")

    def _s3_command(self) -> str:
        """SeaweedFS where it is installed; else moto's server, which keeps all in memory: for trial.

        Raises:
            FerdError: SeaweedFS has stored something here, and is not found now.
        """
        port = self.settings["S3_PORT"]
        if shutil.which("weed"):
            return (
                f"weed mini -dir={shlex.quote(str(self.folder / 's3'))} -ip=127.0.0.1 -ip.bind=127.0.0.1 "
                f"-s3.port={port} -webdav=false -admin.ui=false -s3.port.iceberg=0"
            )
        if (self.folder / "s3").exists():
            raise FerdError(
                f"{self.folder / 's3'} is of SeaweedFS, and `weed` is not on PATH ({os.environ['PATH']}); "
                "correct that, or move the folder away to go on without what it holds"
            )
        print("s3: no SeaweedFS (weed) here; moto's server instead, FOR TRIAL: it forgets all when it stops")
        return f"moto_server -H 127.0.0.1 -p {port}"

    def _s3_answers(self) -> bool:
        try:
            bucket.exists(self.settings["S3_BUCKET"], self.client_environment)
        except Unreachable:
            return False
        return True

    def deploy(self) -> None:
        """Make known to a server the deployments of ``prefect.yaml``, the work pool, the automations.

        To the one at ``PREFECT_API_URL``, where that is set, else this stack's.

        Raises:
            FerdError: a port cannot be, or the server does not answer, wants another password or does not
                take them.
        """
        self._check_settings()
        other = os.environ.get("PREFECT_API_URL")
        server = other or f"http://127.0.0.1:{self.settings['PREFECT_PORT']}/api"
        named = f"Prefect's server at {without_password(server)}"
        if not _answers(f"{server}/ready"):
            raise FerdError(f"{named} does not answer; make up, or set PREFECT_API_URL")
        login = os.environ.get(LOGIN, "") if other else self.secrets()[LOGIN]
        if not _answers(f"{server}/version", login):
            raise FerdError(f"{named} asks for another {LOGIN} than this shell has; set that server's")
        self._deploy({"PREFECT_API_URL": server, LOGIN: login})

    def _deploy(self, services: Mapping[str, str]) -> None:
        pool = self.settings["WORK_POOL"]
        if not _answers(f"{services['PREFECT_API_URL']}/work_pools/{pool}", services[LOGIN]):
            self._run(services, "prefect", "work-pool", "create", pool, "--type", "process")
        self._run(services, "prefect", "--no-prompt", "deploy", "--all")
        self._run(services, "infra.automations")

    def _run(self, services: Mapping[str, str], module: str, *arguments: str) -> None:
        environment = {**os.environ, **self.settings, **services}
        environment.pop("FERD_WORKSPACE", None)  # each worker's own: not to be fixed by who deploys
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.workspace,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())
            raise FerdError(f"{' '.join((module, *arguments))}: {said}")

    def _worker_is_online(self) -> bool:
        """Since its start: the server takes one that has ended for online for some time."""
        with control(self.folder) as supervisor:
            program = supervisor.getProcessInfo("worker") if supervisor else {}
        services = self.client_environment
        pool = f"{services['PREFECT_API_URL']}/work_pools/{self.settings['WORK_POOL']}"
        headers = {"Content-Type": "application/json", **authorization(services[LOGIN])}
        request = urllib.request.Request(f"{pool}/workers/filter", data=b"{}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                workers = json.load(answer)
        except OSError:
            return False
        started = program.get("start") if program.get("statename") == "RUNNING" else None
        return started is not None and any(
            datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() >= started
            for worker in workers
            if worker["status"] == "ONLINE"
        )


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
        self.binaries = postgres_binaries(self.data)
        self.os_user = _unprivileged_user()

    def initialise(self) -> None:
        """Create the cluster, and the file by which MLflow and Prefect log in, where they are not there."""
        settings, password = self._stack.settings, self._stack.secrets()["POSTGRES_PASSWORD"]
        login = f"127.0.0.1:{settings['POSTGRES_PORT']}:*:{settings['POSTGRES_USER']}:{password}\n"
        _write_private(self._stack.folder / "pgpass", login)
        for leftover in self.data.parent.glob(f"{PART}*"):  # of a start that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        if (self.data / "PG_VERSION").exists():
            return
        with tempfile.TemporaryDirectory(prefix=PART, dir=self.data.parent) as part:
            self._create(Path(part), password)

    def _create(self, part: Path, password: str) -> None:
        """Make the cluster in a folder beside it, so that a whole one or none is there."""
        account = pwd.getpwnam(self.os_user)
        other: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        password_file, cluster = part / "password", part / "cluster"
        password_file.write_text(password)
        for path in (part, password_file):
            os.chown(path, account.pw_uid, account.pw_gid)
        user = self._stack.settings["POSTGRES_USER"]
        done = subprocess.run(
            [
                *(self.binaries / "initdb", "--pgdata", cluster, "--username", user),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--pwfile", password_file),
            ],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            **(other if os.geteuid() == 0 else {}),
        )
        if done.returncode:
            said = " ".join(done.stderr.split())
            raise FerdError(
                f"{self.data}: the user {self.os_user} can make no PostgreSQL cluster there: {said}; "
                "set STACK_FOLDER to a folder that this user can reach"
            )
        try:
            cluster.rename(self.data)
        except OSError as error:
            raise FerdError(
                f"{self.data}: {error.strerror}, and no PostgreSQL cluster; move it away"
            ) from None

    def answers(self) -> bool:
        """Whether one can log in.

        Raises:
            FerdError: the cluster has another password.
        """
        import psycopg2

        try:
            self._connect().close()
        except psycopg2.OperationalError as error:
            if "authentication failed" in str(error):
                raise FerdError(
                    f"{self._stack.folder / 'secrets.env'}: not the POSTGRES_PASSWORD that {self.data} was "
                    "made with; put that one back"
                ) from None
            return False
        return True

    def create_databases(self) -> None:
        """MLflow's and Prefect's, where they are not there."""
        from psycopg2 import sql

        with closing(self._connect()) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            for name in (self._stack.settings[key] for key in DATABASES):
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


def postgres_binaries(cluster: Path) -> Path:
    """Where ``postgres`` is: on PATH, or in Debian's place for it; of the version that made ``cluster``.

    Raises:
        FerdError: there is none, or none of that version.
    """
    found = shutil.which("postgres")
    places = [Path(found).parent] if found else []
    places += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True
    )
    installed = [place for place in places if (place / "initdb").exists()]
    if not installed:
        raise FerdError(
            "PostgreSQL's server is not installed; `apt-get install postgresql` or `brew install postgresql`"
        )
    version = cluster / "PG_VERSION"
    if not version.exists():
        return installed[0]
    made_by = version.read_text().strip()
    for place in installed:
        if _major(place) == made_by:
            return place
    raise FerdError(
        f"{cluster}: of PostgreSQL {made_by}, and installed is {', '.join(map(_major, installed))}; "
        f"`apt-get install postgresql-{made_by}`, or pg_upgrade it"
    )


def _major(binaries: Path) -> str:
    """``16`` of ``postgres (PostgreSQL) 16.4``."""
    said = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split()[2].partition(".")[0]


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


def _quoted(value: str) -> str:
    """As a value of an .env file, to be read back as it is."""
    if value.isalnum():
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _still(left: Mapping[str, list[psutil.Process]]) -> str:
    """What outlived supervisord, and what to do."""
    return f"still running: {processes.describe(left)}; `make down` ends them"


def _refuse_taken(name: str, port: int) -> None:
    with closing(socket.socket()) as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise FerdError(f"port {port} is taken: {name}; {CHANGE}")


def _made_up(key: str) -> str:
    return f"{'ferd:' if key == LOGIN else ''}{secrets.token_hex(16)}"


def authorization(login: str) -> dict[str, str]:
    """The header by which Prefect's server takes ``NAME:PASSWORD``; none for an empty one."""
    return {"Authorization": f"Basic {b64encode(login.encode()).decode()}"} if login else {}


def _answers(url: str, login: str = "") -> bool:
    try:
        request = urllib.request.Request(url, headers=authorization(login))
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
    except (ValueError, http.client.HTTPException) as error:
        raise FerdError(f"{url}: no address ({error})") from None


def _wait_until(
    name: str, answers: Callable[[], bool], log: Path, refuse_given_up: Callable[[], None] = lambda: None
) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not answers():
        refuse_given_up()
        if time.monotonic() > deadline:
            raise FerdError(f"{name} does not answer within {PATIENCE_SECONDS:.0f} s; see {log}")
        time.sleep(POLL_SECONDS)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", choices=["up", "down", "status", "deploy", "secrets"])
    command = parser.parse_args().command
    with as_command("stack"):
        stack = Stack()
        match command:
            case "up":
                stack.up()
            case "down":
                stack.down()
            case "status":
                sys.exit(not stack.status())
            case "deploy":
                stack.deploy()
            case "secrets":
                stack.keep_secrets()


if __name__ == "__main__":
    main()
