"""What the launcher refuses in one line, what it leaves behind, and whose processes it ends."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from ferd.errors import FerdError, Unreachable
from infra import bucket, processes, settings, stack
from tests.conftest import ROOT, environment, free_port, free_ports


def launch(module: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the launcher, or another module, with free ports."""
    own = {key: value for key, value in environment().items() if not key.startswith("AWS_")}
    ports = dict(zip(settings.PORTS, map(str, free_ports(len(settings.PORTS))), strict=True))
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=own | ports | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line by which a command refused."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"MLFLOW_PORT": "abc"}, "MLFLOW_PORT=abc is no port"),
        ({"S3_PORT": "0"}, "S3_PORT=0 is no port"),
        ({"PREFECT_PORT": "65536"}, "PREFECT_PORT=65536 is no port"),
        ({"MLFLOW_PORT": "5001", "PREFECT_PORT": "5001"}, "MLFLOW_PORT and PREFECT_PORT are both 5001"),
        ({"PREFECT_DATABASE": "mlflow"}, "MLFLOW_DATABASE and PREFECT_DATABASE are both mlflow"),
        ({"FLOW_RUNS_AT_A_TIME": "abc"}, "FLOW_RUNS_AT_A_TIME=abc is no whole number of 1 or more"),
        ({"SILENT_RUN_SECONDS": "9"}, "SILENT_RUN_SECONDS=9 is no whole number of 10 or more"),
        ({"S3_BUCKET": "A/b"}, "S3_BUCKET=A/b: 3 to 63 small letters"),
        ({"NIGHTLY_CRON": "nonsense"}, "NIGHTLY_CRON=nonsense with NIGHTLY_TIMEZONE=UTC is no schedule"),
        ({"NIGHTLY_TIMEZONE": "Nowhere"}, "with NIGHTLY_TIMEZONE=Nowhere is no schedule"),
        ({"POSTGRES_USER": "me@lab"}, "POSTGRES_USER=me@lab: letters, digits, _ and - alone"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_is_made(tmp_path, settings, said):
    folder = tmp_path / "stack"
    assert said in refusal(launch("infra.stack", "up", STACK_FOLDER=str(folder), **settings))
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file/stack"
    assert "set STACK_FOLDER" in refusal(launch("infra.stack", "up", STACK_FOLDER=str(folder)))


@pytest.mark.parametrize("name", ["100%", 'a"b', "a\\b", "a\nb"])
def test_a_folder_that_supervisord_cannot_name_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setenv("STACK_FOLDER", str(tmp_path / name))
    with pytest.raises(FerdError, match="set STACK_FOLDER"):
        stack.Stack().up()
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("command", ["up", "secrets"])
def test_a_second_start_at_the_same_time_is_refused(tmp_path, command):
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another `make up`" in refusal(launch("infra.stack", command, STACK_FOLDER=str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "logs"}


def test_the_bucket_asks_for_its_name_and_endpoint():
    without = launch("infra.bucket")
    assert without.returncode == 2
    assert without.stderr.endswith("the following arguments are required: name\n")
    assert "AWS_ENDPOINT_URL" in refusal(launch("infra.bucket", "ferd"))


def s3_at(port):
    keys = ("AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    return dict.fromkeys(keys, "x") | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}


@pytest.mark.parametrize(("status", "passes"), [(403, False), (404, False), (500, True), (503, True)])
def test_an_s3_that_refuses_is_told_from_one_that_is_not_ready(status, passes):
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(status)

        do_PUT = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(FerdError, match=r"^S3 bucket ferd: .+") as caught:
            bucket.ensure("ferd", s3_at(server.server_port))
        server.shutdown()
    assert isinstance(caught.value, Unreachable) is passes


def test_an_s3_that_does_not_answer_may_answer_later():
    with pytest.raises(Unreachable):
        bucket.ensure("ferd", s3_at(free_port()))


@pytest.fixture
def left_behind(tmp_path):
    """A worker that ignores TERM, without supervisord; and a shell of someone who uses the same folder."""
    shell = os.environ | {"STACK_FOLDER": str(tmp_path)}
    worker = shell | {processes.MARK: "moto_server", "SUPERVISOR_PROCESS_NAME": "worker"}
    stubborn = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    with (
        subprocess.Popen(["sh", "-c", stubborn], env=worker, stdout=subprocess.PIPE) as first,
        subprocess.Popen(["sleep", "60"], env=shell) as second,
    ):
        first.stdout.readline()
        yield first, second
        first.kill()
        second.kill()


def test_what_outlived_supervisord_is_named_and_ended(left_behind, tmp_path, monkeypatch, capsys):
    worker, shell = left_behind
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setenv("STACK_FOLDER", str(tmp_path))
    for name, port in zip(settings.PORTS, free_ports(len(settings.PORTS)), strict=True):
        monkeypatch.setenv(name, str(port))
    assert not stack.Stack().status()
    assert f"worker ({worker.pid}" in capsys.readouterr().out
    with pytest.raises(FerdError, match="`make down` ends them"):
        stack.Stack().up()
    assert not (tmp_path / "secrets.env").exists()
    stack.Stack().down()
    assert worker.wait(10) == -signal.SIGKILL
    assert shell.poll() is None
    assert capsys.readouterr().out == "stopped\n"


def test_what_a_shell_says_of_other_services_is_not_for_these(tmp_path, monkeypatch):
    others = ("PGHOST", "PGSSLMODE", "PGOPTIONS", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE")
    for name in (*others, "POSTGRES_USER"):
        monkeypatch.setenv(name, "another")
    monkeypatch.setenv("STACK_FOLDER", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["stack", "down"])
    stack.main()
    assert [name for name in others if name in os.environ] == []
    assert os.environ["POSTGRES_USER"] == "another"


def test_another_users_process_is_said_to_be_theirs(tmp_path, monkeypatch):
    def refuse(*_):
        raise psutil.AccessDenied

    own = psutil.Process()
    monkeypatch.setattr(psutil.Process, "send_signal", refuse)
    monkeypatch.setattr(processes, "running", lambda _: {"postgresql": [own]})
    with pytest.raises(FerdError, match=f"^process {own.pid} is of the user {own.username()}; end it as"):
        processes.end(tmp_path, "postgresql")


SUPERVISED = """
[supervisord]
pidfile={folder}/supervisord.pid
logfile={folder}/supervisord.log
[unix_http_server]
file={folder}/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[program:mlflow]
command=sh -c 'test -e {folder}/room && exec sleep 600'
autostart=false
startretries=500
stdout_logfile={folder}/mlflow.log
"""


def test_a_service_whose_starts_fail_is_named_and_begins_when_it_can(tmp_path, monkeypatch):
    """A real supervisord; a shell that ends at once stands for a service on a full disk."""
    monkeypatch.setenv("STACK_FOLDER", str(tmp_path))
    configuration, room = tmp_path / "supervisord.conf", tmp_path / "room"
    configuration.write_text(SUPERVISED.format(folder=tmp_path))
    supervisord = (sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration))
    subprocess.run(supervisord, check=True, capture_output=True)
    own = stack.Stack()
    monkeypatch.setattr(stack.Stack, "_answering", lambda _: {"mlflow": room.exists})
    try:
        with pytest.raises(FerdError, match=r"^mlflow does not start; see .*mlflow.log$"):
            own._start("mlflow")
        with stack.control(tmp_path) as supervisor:
            assert supervisor.getProcessInfo("mlflow")["statename"] == "BACKOFF"  # is tried again
        room.touch()
        own._start("mlflow")
        with stack.control(tmp_path) as supervisor:  # at once, not when its wait is over
            assert supervisor.getProcessInfo("mlflow")["statename"] in ("STARTING", "RUNNING")
    finally:
        psutil.Process(int((tmp_path / "supervisord.pid").read_text())).terminate()
