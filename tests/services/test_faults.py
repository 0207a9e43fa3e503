"""What breaks at night: the next attempt ends with the bytes of an undisturbed run."""

import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from infra import automations, processes, settings
from tests.conftest import free_ports, run_in, set_param, wait_until
from tests.services.conftest import Services
from tests.services.test_sharing import add_remote

pytestmark = pytest.mark.services

STAGE = "distill-digits@resnet8-w8-no-fae-s0"
DVC = (sys.executable, "-m", "dvc")


def long_workspace(services: Services, folder: Path) -> Path:
    """A copy of the worker's workspace in which the stage takes many rounds."""
    shutil.copytree(services.workspace, folder, symlinks=True)
    set_param(folder, 60, "benchmarks", "digits", "distillation", "rounds")
    return folder


def outputs(folder: Path) -> dict[str, bytes]:
    """The stage's checkpoint, its images and its rounds."""
    below = (folder / "checkpoints/digits/resnet8-w8/no-fae", folder / "results/digits/resnet8-w8/no-fae")
    files = [path for place in below for path in place.glob("**/*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if "cost" not in path.name}


def in_the_stage(folder: Path) -> bool:
    """Whether the stage has finished a round."""
    return bool(list(folder.glob(".resume/distill-digits-resnet8-w8-no-fae-s0/*/state.pt")))


@pytest.fixture(scope="module")
def undisturbed(reproduced, tmp_path_factory) -> dict[str, bytes]:
    """The outputs of the stage, run without any service."""
    folder = tmp_path_factory.mktemp("undisturbed") / "workspace"
    long_workspace(reproduced, folder)
    done = run_in(folder, *DVC, "repro", "--single-item", STAGE)
    assert done.returncode == 0, done.stdout + done.stderr
    found = outputs(folder)
    assert len(found) > 4
    return found


def a_run(services: Services, state: str) -> str:
    """A run that no machine works at; -> its id."""
    flow = services.api("/flows/", {"name": "silent"})["id"]
    return services.api("/flow_runs/", {"flow_id": flow, "state": {"type": state}})["id"]


def send_heartbeat(services: Services, run: str) -> None:
    """The event that a run's process sends."""
    event = {
        "event": automations.HEARTBEAT,
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
    }
    services.api("/events", [event])


def declare_silence(services: Services, seconds: str) -> None:
    """As ``make up`` does."""
    services.run(sys.executable, "-m", "infra.automations", SILENT_RUN_SECONDS=seconds)
    (kept,) = services.api("/automations/filter", {})
    assert (kept["name"], kept["trigger"]["within"]) == (automations.NAME, float(seconds))


def test_a_run_whose_machine_is_gone_is_marked_as_crashed(services):
    """So that a grid does not wait for it for ever.

    Tried before the next test, in which PostgreSQL restarts while Prefect's server is starting: such a server
    looks at no automation until it is restarted too.
    """
    declare_silence(services, "20")
    try:
        lost, alive, taken = (a_run(services, state) for state in ("RUNNING", "RUNNING", "PENDING"))
        send_heartbeat(services, lost)

        def is_lost():
            send_heartbeat(services, alive)
            return [services.state(run) for run in (lost, taken)] == ["CRASHED", "CRASHED"]

        wait_until(is_lost, 180, lambda: services.log("prefect"))
        assert services.message(lost).startswith("no heartbeat for 20 s")
        assert services.state(alive) == "RUNNING"
    finally:
        declare_silence(services, "1800")


def test_a_flow_outlives_a_restart_of_prefect_and_of_postgresql(reproduced, undisturbed, tmp_path):
    folder = long_workspace(reproduced, tmp_path / "workspace")
    run = reproduced.submit("stage/stage", folder, name=STAGE)
    wait_until(lambda: in_the_stage(folder), 300, reproduced.log)
    reproduced.restart("prefect")
    reproduced.restart("postgresql")
    assert reproduced.wait(run) == "COMPLETED", reproduced.log()
    assert outputs(folder) == undisturbed


def test_after_a_kill_of_everything_in_a_stage_the_next_attempt_finishes(reproduced, undisturbed, tmp_path):
    folder = long_workspace(reproduced, tmp_path / "workspace")
    reproduced.submit("stage/stage", folder, name=STAGE)
    wait_until(lambda: in_the_stage(folder), 300, reproduced.log)
    worker = psutil.Process(reproduced.program("worker")["pid"])
    for process in [worker, *worker.children(recursive=True)]:  # as when the machine loses power
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    assert not (folder / "checkpoints/digits/resnet8-w8/no-fae/s0.safetensors").exists()

    def another_runs():
        found = reproduced.program("worker")
        return found["statename"] == "RUNNING" and found["pid"] != worker.pid

    wait_until(another_runs, 120)
    second = reproduced.submit("stage/stage", folder, name=STAGE)
    assert reproduced.wait(second) == "COMPLETED", reproduced.log()
    assert outputs(folder) == undisturbed


def test_what_outlives_supervisord_is_ended_by_down(services):
    folder = Path(tempfile.mkdtemp(prefix="ferd stack-"))
    folder.chmod(0o755)
    launcher = (sys.executable, "-m", "infra.stack")
    own = services.started_with | dict(
        zip(settings.PORTS, map(str, free_ports(len(settings.PORTS))), strict=True)
    )
    own |= {"STACK_FOLDER": str(folder)}
    try:
        with subprocess.Popen(
            [*launcher, "up"], cwd=services.workspace, env=own, stdout=subprocess.PIPE, text=True
        ) as up:
            assert any(line.startswith("s3 ") and "answers" in line for line in up.stdout)
            up.kill()
        started = {"supervisord", "postgresql", "s3"}
        assert processes.running(folder).keys() >= started
        psutil.Process(int((folder / "supervisord.pid").read_text())).kill()
        wait_until(lambda: "supervisord" not in processes.running(folder), 60)

        status = run_in(services.workspace, *launcher, "status", **own)
        assert status.returncode == 1
        assert "postgresql (" in status.stdout  # SeaweedFS ends with its next line: nobody reads its log now
        refused = run_in(services.workspace, *launcher, "up", **own)
        assert refused.returncode == 2
        assert "`make down` ends them" in refused.stderr
    finally:
        down = run_in(services.workspace, *launcher, "down", **own)
        left = processes.running(folder)
        shutil.rmtree(folder)
    assert down.stdout == "stopped\n", down.stderr
    assert left == {}


class Faulty(BaseHTTPRequestHandler):
    """An S3 endpoint that has broken: every answer is 500."""

    protocol_version = "HTTP/1.1"

    def refuse(self) -> None:
        """Answer without looking at the request, and hang up."""
        self.close_connection = True
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_PUT = do_POST = do_HEAD = refuse

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def faulty_s3() -> Iterator[str]:
    """The address of a broken S3 endpoint."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_what_s3_refused_with_500_is_sent_whole_when_it_has_recovered(reproduced, faulty_s3, tmp_path):
    folder = tmp_path / "workspace"
    shutil.copytree(reproduced.workspace, folder, symlinks=True)
    add_remote(reproduced, folder, "s3://ferd/faulty")
    share = (sys.executable, "-m", "tasks.share", "evaluate-digits@resnet8-w8-uniform-noise-s0")
    broken = reproduced.environment | {"AWS_ENDPOINT_URL": faulty_s3, "AWS_MAX_ATTEMPTS": "2"}
    failed = run_in(folder, *share, **broken)
    assert failed.returncode != 0
    assert failed.stderr.splitlines()[-1].startswith("share: "), failed.stderr

    reproduced.run(*share, cwd=folder)
    before = {path: path.read_bytes() for path in folder.glob("checkpoints/**/*") if path.is_file()}
    shutil.rmtree(folder / ".dvc/cache")
    shutil.rmtree(folder / "checkpoints")
    reproduced.run(*DVC, "pull", "--with-deps", "evaluate-digits@resnet8-w8-uniform-noise-s0", cwd=folder)
    assert {path: path.read_bytes() for path in before} == before
