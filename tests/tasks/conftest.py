"""Servers that files are fetched from: one over HTTP that breaks as it is told, and one of S3."""

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tasks import download

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT everywhere; each GET takes the next of ``faults``, and is noted by its Range."""

    faults: list[str | int]
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the fault says: a status, or a way to break."""

    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "hang up":
            self.close_connection = True
        elif fault == "garbage":
            self.wfile.write(b"garbage\r\n\r\n")
        else:
            self.answer(0 if fault == "whole" or not asked else int(asked[6:-1]), fault)

    def answer(self, begin: int, fault: str) -> None:
        if begin >= len(CONTENT):
            self.send_error(416)
            return
        rest = CONTENT[begin:]
        self.send_response(206 if begin else 200)
        if fault != "no length":
            self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if fault == "slow":
            time.sleep(0.3)
        self.wfile.write(rest[: len(rest) // 2] if fault == "half" else rest)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        server.faults, server.asked = [], []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def url(server) -> str:
    return f"http://127.0.0.1:{server.server_port}/net.pt"


@pytest.fixture
def short_pauses(monkeypatch):
    monkeypatch.setattr(download, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture(scope="module")
def moto():
    """The address of an S3 server with CONTENT at s3://models/a/net.pt."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def use_s3(monkeypatch, endpoint: str, folder: Path) -> None:
    """Make an endpoint, and credentials that it takes, all that the environment says about AWS."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers credentials
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(folder / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no-credentials"),
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3(moto, monkeypatch, tmp_path) -> str:
    use_s3(monkeypatch, moto, tmp_path)
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="models")
    client.put_object(Bucket="models", Key="a/net #1.pt", Body=CONTENT)
    return "s3://models/a/net #1.pt"
