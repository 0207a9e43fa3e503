"""Downloads from real servers that break, forget and refuse; each fault is one line."""

import hashlib
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

from ferd.config import Weights
from ferd.errors import FerdError
from tasks import storage

CONTENT = bytes(range(256)) * 40
HALF = len(CONTENT) // 2
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = "0" * 64
NOBODY = "http://127.0.0.1:9"


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /net.pt.

    Attributes:
        asked: the Range of every request, None without.
        breaks: how many bytes each of the next answers sends before the connection breaks.
        statuses: what each of the next answers says instead.
        ranges: whether Range is understood.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.breaks, self.statuses, self.ranges = [], [], [], True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/net.pt"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        begin = int(asked[len("bytes=") : -1]) if asked and self.server.ranges else 0
        if self.path != "/net.pt" or self.server.statuses:
            self.answer(404 if self.path != "/net.pt" else self.server.statuses.pop(0), b"")
        elif begin >= len(CONTENT):
            self.answer(416, b"")
        else:
            self.answer(206 if begin else 200, CONTENT[begin:])

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.breaks.pop(0)] if body and self.server.breaks else body)

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.0)


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "folder" / "net.pt"


def part_of(target):
    return target.with_name("net.pt.part")


def refusal(act, *arguments):
    with pytest.raises(FerdError) as raised:
        act(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def left(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_file_is_fetched_once(server, target):
    for _ in range(2):
        storage.download(server.url, target, SHA256)
    assert target.read_bytes() == CONTENT and left(target.parent) == ["net.pt"]
    assert server.asked == [None]


def test_a_file_with_another_hash_is_fetched_anew(server, target):
    target.parent.mkdir()
    target.write_bytes(b"old")
    storage.download(server.url, target, hashlib.md5(CONTENT).hexdigest(), "md5")
    assert target.read_bytes() == CONTENT


def test_a_broken_connection_goes_on_where_it_was(server, target):
    server.breaks = [1000, 2000]
    storage.download(server.url, target, SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=3000-"]


def test_a_server_that_ignores_ranges_begins_anew(server, target):
    server.breaks, server.ranges = [1000], False
    storage.download(server.url, target, SHA256)
    assert target.read_bytes() == CONTENT and server.asked == [None, "bytes=1000-"]


def test_after_some_breaks_what_was_fetched_is_kept_for_a_later_call(server, target):
    server.breaks = [10] * storage.TRIES
    line = refusal(storage.download, server.url, target, SHA256)
    assert server.url in line and "broke" in line and "40 bytes are kept" in line
    assert part_of(target).read_bytes() == CONTENT[:40] and not target.exists()
    storage.download(server.url, target, SHA256)
    assert server.asked[-1] == "bytes=40-" and left(target.parent) == ["net.pt"]


def test_a_part_that_is_longer_than_the_whole_is_fetched_anew(server, target):
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT + b"more")
    storage.download(server.url, target, SHA256)
    assert target.read_bytes() == CONTENT and server.asked[-1] is None


def test_another_hash_is_said_with_both_and_the_part_deleted(server, target):
    line = refusal(storage.download, server.url, target, OTHER)
    assert SHA256 in line and OTHER in line and server.url in line
    assert left(target.parent) == []


def test_a_missing_file_is_not_tried_again(server, target):
    line = refusal(storage.download, f"{server.url}x", target, SHA256)
    assert "404 Not Found" in line and f"{server.url}x" in line
    assert len(server.asked) == 1 and left(target.parent) == []


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_tried_again(server, target, status):
    server.statuses = [status, status]
    storage.download(server.url, target, SHA256)
    assert target.read_bytes() == CONTENT and len(server.asked) == 3


def test_without_a_server_one_line_says_so(target):
    line = refusal(storage.download, f"{NOBODY}/net.pt", target, SHA256)
    assert NOBODY in line and "refused" in line
    assert left(target.parent) == []


@pytest.mark.parametrize("url", ["net.pt", "ftp://127.0.0.1/net.pt", "http://127.0.0.1/a net.pt"])
def test_what_is_no_address_is_refused(target, url):
    assert url in refusal(storage.download, url, target, SHA256)


def test_a_full_disk_is_one_line(server, target):
    target.parent.mkdir()
    part_of(target).symlink_to("/dev/full")
    line = refusal(storage.download, server.url, target, SHA256)
    assert "No space left on device" in line and str(target) in line
    assert not target.exists()


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in refusal(storage.download, server.url, tmp_path / "file" / "x", SHA256)


def test_of_two_that_want_the_same_file_one_fetches_it(server, target):
    both = [threading.Thread(target=storage.download, args=(server.url, target, SHA256)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert server.asked == [None] and left(target.parent) == ["net.pt"]


def weights(source, location, sha256=SHA256):
    return Weights(source=source, location=str(location), sha256=sha256)


def test_weights_of_an_address_land_in_downloads(server):
    for _ in range(2):
        path = storage.fetch_weights(weights("https", server.url))
        assert path == Path(f"downloads/{SHA256[:16]}-net.pt") and path.read_bytes() == CONTENT
    assert server.asked == [None]


@pytest.mark.parametrize(
    ("source", "location"),
    [("https", "s3://bucket/net.pt"), ("s3", "https://host/net.pt"), ("https", "/net.pt")],
)
def test_an_address_of_another_source_is_refused(source, location):
    line = refusal(storage.fetch_weights, weights(source, location))
    assert location in line and f"{source}://" in line


def test_a_file_is_taken_where_it_lies(tmp_path, monkeypatch):
    (tmp_path / "sets").mkdir()
    path = tmp_path / "sets" / "net.pt"
    path.write_bytes(CONTENT)
    monkeypatch.setenv("FERD_DATA", str(tmp_path / "sets"))
    assert storage.fetch_weights(weights("file", path)) == path
    assert storage.fetch_weights(weights("file", "net.pt")) == path
    monkeypatch.delenv("FERD_DATA")
    assert "FERD_DATA is not set" in refusal(storage.fetch_weights, weights("file", "net.pt"))


def test_a_file_that_is_missing_or_another_is_refused(tmp_path):
    path = tmp_path / "net.pt"
    assert f"{path}: cannot be read: No such file" in refusal(storage.fetch_weights, weights("file", path))
    path.write_bytes(CONTENT)
    line = refusal(storage.fetch_weights, weights("file", path, OTHER))
    assert SHA256 in line and OTHER in line and path.exists()


def test_weights_of_the_package_are_found_by_name(tmp_path, monkeypatch):
    (tmp_path / "net.safetensors").write_bytes(CONTENT)
    monkeypatch.setattr(storage.resources, "files", {"ferd.assets": tmp_path}.__getitem__)
    assert storage.fetch_weights(weights("package", "net.safetensors")) == tmp_path / "net.safetensors"
    line = refusal(storage.fetch_weights, weights("package", "ent.safetensors"))
    assert "'ent.safetensors'" in line and "net.safetensors" in line.partition("those that do")[2]


@pytest.fixture(scope="module")
def s3():
    """The address of an S3 server with CONTENT at s3://bucket/some/net.pt."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=address, **keys)
    client.create_bucket(Bucket="bucket")
    client.put_object(Bucket="bucket", Key="some/net.pt", Body=CONTENT)
    yield address
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch, tmp_path):
    """That server in the environment, and no credentials from anywhere else."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return "s3://bucket/some/net.pt"


def test_weights_of_a_bucket_land_in_downloads(bucket):
    path = storage.fetch_weights(weights("s3", bucket))
    assert path == Path(f"downloads/{SHA256[:16]}-net.pt") and path.read_bytes() == CONTENT


def test_a_download_from_a_bucket_goes_on_where_it_was(bucket, target):
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT[:HALF])
    storage.download(bucket, target, SHA256)
    assert target.read_bytes() == CONTENT
    target.unlink()
    part_of(target).write_bytes(bytes(HALF))  # a wrong half stays wrong: only the rest was fetched
    wrong = hashlib.sha256(bytes(HALF) + CONTENT[HALF:]).hexdigest()
    assert wrong in refusal(storage.download, bucket, target, SHA256)
    assert left(target.parent) == []


def test_a_part_as_long_as_the_whole_is_fetched_anew_from_a_bucket(bucket, target):
    target.parent.mkdir()
    part_of(target).write_bytes(bytes(len(CONTENT)))
    storage.download(bucket, target, SHA256)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://bucket/none", "no such key"),
        ("s3://none/some/net.pt", "no such bucket"),
        ("s3:///net.pt", "bucket"),
        ("s3://bucket", "Key"),
    ],
)
def test_what_is_not_in_the_storage_is_named(bucket, target, url, words):
    line = refusal(storage.download, url, target, SHA256)
    assert url in line and words in line
    assert left(target.parent) == []


def test_a_bucket_that_may_not_be_read_is_one_line(bucket, s3, target):
    requests.post(f"{s3}/moto-api/reset-auth", data=b"0", timeout=10)  # from now on keys are checked
    try:
        line = refusal(storage.download, bucket, target, SHA256)
    finally:
        requests.post(f"{s3}/moto-api/reset-auth", data=b"inf", timeout=10)
    assert bucket in line and "forbidden" in line


def test_without_credentials_the_variables_are_named(bucket, target, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "AWS_SECRET_ACCESS_KEY" in refusal(storage.download, bucket, target, SHA256)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "no credentials" in refusal(storage.download, bucket, target, SHA256)


@pytest.mark.parametrize(("endpoint", "words"), [(NOBODY, NOBODY), ("nonsense", "nonsense")])
def test_a_storage_that_cannot_be_reached_is_one_line(bucket, target, monkeypatch, endpoint, words):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    line = refusal(storage.download, bucket, target, SHA256)
    assert bucket in line and words in line and "AWS_" in line


@pytest.mark.skipif(find_spec("robustbench") is not None, reason="RobustBench is installed")
def test_without_robustbench_the_extra_is_named():
    line = refusal(storage.fetch_weights, weights("robustbench", "Zhang2019Theoretically"))
    assert "robustbench" in line and ".[robustbench]" in line


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A package with RobustBench's names for its zoo; its download writes the file id's bytes."""
    package = tmp_path / "site" / "robustbench"
    (package / "model_zoo").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "utils.py").write_text(
        "def download_gdrive_new(gdrive_id, fname_save):\n"
        "    if gdrive_id == 'gone':\n        raise OSError('file is\\ngone')\n"
        "    fname_save.write_bytes(gdrive_id.encode())\n"
    )
    (package / "model_zoo" / "enums.py").write_text(
        "class BenchmarkDataset:\n    cifar_10 = 'cifar10'\nclass ThreatModel:\n    Linf = 'Linf'\n"
    )
    (package / "model_zoo" / "__init__.py").write_text(
        "models = {'One': 'one', 'Many': ['a', 'b'], 'Gone': 'gone'}\n"
        "models = {name: {'gdrive_id': file_id} for name, file_id in models.items()}\n"
        "model_dicts = {'cifar10': {'Linf': models}}\n"
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "robustbench"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(package.parent)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "robustbench"]:
        del sys.modules[name]


def test_a_model_of_the_zoo_lands_in_downloads(zoo):
    sha256 = hashlib.sha256(b"one").hexdigest()
    path = storage.fetch_weights(weights("robustbench", "One", sha256))
    assert path == Path(f"downloads/{sha256[:16]}-One.pt") and path.read_bytes() == b"one"


@pytest.mark.parametrize(
    ("name", "words"), [("Two", "'Two'"), ("Many", "'Many'"), ("Gone", "file is gone"), ("One", SHA256)]
)
def test_a_model_that_the_zoo_does_not_give_is_one_line(zoo, name, words):
    assert words in refusal(storage.fetch_weights, weights("robustbench", name))
    assert left(Path("downloads")) == []
