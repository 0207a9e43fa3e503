"""What breaks at night: the next attempt ends with the bytes of an undisturbed run."""

import shutil
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from tests.conftest import run_in, set_param, wait_until
from tests.services.conftest import Services

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
        process.send_signal(signal.SIGKILL)
    assert not (folder / "checkpoints/digits/resnet8-w8/no-fae/s0.safetensors").exists()

    wait_until(lambda: reproduced.program("worker")["statename"] == "RUNNING", 120)
    second = reproduced.submit("stage/stage", folder, name=STAGE)
    assert reproduced.wait(second) == "COMPLETED", reproduced.log()
    assert outputs(folder) == undisturbed


HOP_BY_HOP = ("Expect", "Transfer-Encoding", "Connection")


class Faulty(BaseHTTPRequestHandler):
    """Passes requests on to an S3 endpoint, or answers 500."""

    protocol_version = "HTTP/1.1"  # which knows `Expect: 100-continue`
    target = url = ""
    broken = True
    refused = 0

    def body(self) -> bytes:
        """All of the request's body, which may come in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def handle_one(self) -> None:
        if type(self).broken:
            type(self).refused += 1
            self.body()
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = self.body()
        request = urllib.request.Request(
            type(self).target + self.path,
            data=body or None,
            headers={key: value for key, value in self.headers.items() if key not in HOP_BY_HOP},
            method=self.command,
        )
        try:
            answer = urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            content = answer.read()
            self.send_response(answer.status)
            for key, value in answer.headers.items():
                if key.lower() not in ("connection", "date", "server", "transfer-encoding"):
                    self.send_header(key, value)
            if "Content-Length" not in answer.headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def faulty_s3(services) -> Iterator[type[Faulty]]:
    """An endpoint in front of the real one that answers 500 until it is mended."""

    class Endpoint(Faulty):
        target = services.environment["AWS_ENDPOINT_URL"]

    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        Endpoint.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield Endpoint
        server.shutdown()
        thread.join()


def test_a_push_fails_while_s3_answers_500_and_ends_whole_when_it_recovers(reproduced, faulty_s3, tmp_path):
    folder = tmp_path / "workspace"
    shutil.copytree(reproduced.workspace, folder, symlinks=True)
    run_in(folder, *DVC, "remote", "add", "--local", "--default", "storage", "s3://ferd/faulty")
    target = ("--with-deps", "evaluate-digits@resnet8-w8-uniform-noise-s0")
    through = reproduced.environment | {
        "AWS_ENDPOINT_URL": faulty_s3.url,
        "AWS_MAX_ATTEMPTS": "2",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # plain bodies, for the proxy
    }
    failed = run_in(folder, *DVC, "push", *target, **through)
    assert failed.returncode != 0
    assert faulty_s3.refused

    faulty_s3.broken = False
    pushed = run_in(folder, *DVC, "push", *target, **through)
    assert pushed.returncode == 0, pushed.stdout + pushed.stderr
    before = {path: path.read_bytes() for path in folder.glob("checkpoints/**/*") if path.is_file()}
    shutil.rmtree(folder / ".dvc/cache")
    shutil.rmtree(folder / "checkpoints")
    reproduced.run(*DVC, "pull", *target, cwd=folder)
    assert {path: path.read_bytes() for path in before} == before
