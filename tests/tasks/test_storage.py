"""Downloads over connections that break, from servers that refuse, and what is kept and removed."""

import hashlib
import sys
import threading
import time
import types
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from ferd.config import Weights
from ferd.errors import FerdError
from tasks import storage
from tasks.storage import download, fetch_weights

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
def target(tmp_path) -> Path:
    return tmp_path / "folder" / "net.pt"


@pytest.fixture
def part(target) -> Path:
    return target.with_name("net.pt.part")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.001)


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def refused(action: Callable[..., object], *args: object) -> str:
    with pytest.raises(FerdError) as raised:
        action(*args)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_file_is_fetched_whole_into_a_new_folder(server, url, target):
    download(url, target, SHA256)
    assert target.read_bytes() == CONTENT and server.asked == [None]
    assert list(target.parent.iterdir()) == [target]


def test_the_hash_may_be_an_md5(url, target):
    download(url, target, hashlib.md5(CONTENT).hexdigest(), "md5")
    assert target.read_bytes() == CONTENT


def test_a_target_that_is_right_asks_nobody(server, url, target):
    put(target, CONTENT)
    download(url, target, SHA256)
    assert server.asked == []


def test_a_target_that_is_another_file_is_replaced(url, target):
    put(target, b"old")
    download(url, target, SHA256)
    assert target.read_bytes() == CONTENT


def test_a_connection_that_breaks_is_continued_where_it_broke(server, url, target):
    server.faults = ["half", "half"]
    download(url, target, SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=5120-", "bytes=7680-"]


def test_only_the_rest_is_fetched_after_an_earlier_call(server, url, target, part):
    kept = b"x" * 100  # not what the server has: the result shows that it was kept
    put(part, kept)
    download(url, target, hashlib.sha256(kept + CONTENT[100:]).hexdigest())
    assert target.read_bytes() == kept + CONTENT[100:] and not part.exists()
    assert server.asked == ["bytes=100-"]


def test_a_connection_that_keeps_breaking_leaves_what_came_for_a_later_call(server, url, target, part):
    server.faults = ["half"] * 4
    line = refused(download, url, target, SHA256)
    assert url in line and "broke after 9600 of 10240 bytes (tried 4 times)" in line and str(part) in line
    assert part.read_bytes() == CONTENT[:9600] and not target.exists()
    download(url, target, SHA256)
    assert target.read_bytes() == CONTENT and server.asked[4:] == ["bytes=9600-"]


def test_a_server_that_ignores_range_sends_the_whole_again(server, url, target):
    server.faults = ["half", "whole"]
    download(url, target, SHA256)
    assert target.read_bytes() == CONTENT and server.asked == [None, "bytes=5120-"]


@pytest.mark.parametrize("fault", [500, 503, 408, 429, "hang up", "garbage"])
def test_a_passing_fault_is_tried_again(server, url, target, fault):
    server.faults = [fault, fault]
    download(url, target, SHA256)
    assert target.read_bytes() == CONTENT and len(server.asked) == 3


def test_pauses_double_and_end(server, url, target, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 1.0)
    server.faults = [503] * 9
    assert "the server answers 503 Service Unavailable (tried 4 times)" in refused(
        download, url, target, SHA256
    )
    assert pauses == [1.0, 2.0, 4.0] and len(server.asked) == 4


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_not_tried_again(server, url, target, status):
    server.faults = [status]
    assert f"{url}: the server answers {status}" in refused(download, url, target, SHA256)
    assert len(server.asked) == 1 and list(target.parent.iterdir()) == []


@pytest.mark.parametrize("kept", [CONTENT, CONTENT + b"more"])
def test_a_part_with_nothing_left_to_fetch_begins_anew(server, url, target, part, kept):
    put(part, kept)
    download(url, target, SHA256)
    assert target.read_bytes() == CONTENT and server.asked == [f"bytes={len(kept)}-", None]


def test_a_server_that_always_answers_416_is_refused(server, url, target, part):
    put(part, b"some")
    server.faults = [416, 416]
    assert "416" in refused(download, url, target, SHA256)
    assert len(server.asked) == 2


def test_a_file_of_unknown_length_is_fetched(server, url, target):
    server.faults = ["no length"]
    download(url, target, SHA256)
    assert target.read_bytes() == CONTENT


def test_another_file_than_expected_is_removed_and_the_target_stays(url, target, part):
    put(target, b"old")
    line = refused(download, url, target, "0" * 64)
    assert url in line and f"sha256 is {SHA256} but {'0' * 64} is expected" in line
    assert target.read_bytes() == b"old" and not part.exists()


def test_two_calls_at_a_time_fetch_once(server, url, target):
    server.faults = ["slow"]
    calls = [threading.Thread(target=download, args=(url, target, SHA256)) for _ in range(2)]
    for call in calls:
        call.start()
    for call in calls:
        call.join(10)
    assert server.asked == [None]
    assert target.read_bytes() == CONTENT and list(target.parent.iterdir()) == [target]


def test_a_long_download_says_how_far_it_is(url, target, monkeypatch, capsys):
    monkeypatch.setattr(storage, "PROGRESS_SECONDS", -1.0)
    download(url, target, SHA256)
    assert capsys.readouterr().out == f"{url}: 0 of ? MiB\n"  # less than one of them


def test_nobody_at_the_address_is_said_so(target):
    assert "no connection: " in refused(download, "http://127.0.0.1:9/net.pt", target, SHA256)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("address", ["ftp://host/net.pt", "net.pt", "", "https://host/a net.pt", "https://"])
def test_what_is_no_address_is_refused(target, address):
    assert "correct it" in refused(download, address, target, SHA256)


def test_a_folder_that_cannot_be_written_is_named(url, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    target = tmp_path / "file" / "net.pt"
    assert f"{target}: cannot be written" in refused(download, url, target, SHA256)


def test_a_full_disk_is_one_line(url, target, part):
    part.parent.mkdir()
    part.symlink_to("/dev/full")
    assert f"{target}: cannot be written: No space left" in refused(download, url, target, SHA256)
    assert not target.exists()


def test_a_folder_in_the_place_of_the_file_is_named(url, target):
    target.mkdir(parents=True)
    assert f"{target}: cannot be written: Is a directory" in refused(download, url, target, SHA256)


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


def test_an_object_is_fetched_whole(s3, target):
    download(s3, target, SHA256)
    assert target.read_bytes() == CONTENT and list(target.parent.iterdir()) == [target]


def test_an_object_is_continued_from_its_part(s3, target, part):
    kept = b"x" * 100
    put(part, kept)
    download(s3, target, hashlib.sha256(kept + CONTENT[100:]).hexdigest())
    assert target.read_bytes() == kept + CONTENT[100:]


def test_an_object_of_which_nothing_is_left_to_fetch_begins_anew(s3, target, part):
    put(part, b"x" * len(CONTENT))
    download(s3, target, SHA256)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("address", "missing"),
    [("s3://models/b/net.pt", "no such key"), ("s3://nobodys/a/net.pt", "no such bucket")],
)
def test_a_missing_object_or_bucket_is_said_so(s3, target, address, missing):
    line = refused(download, address, target, SHA256)
    assert f"{address}: " in line and missing in line
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("address", ["s3://", "s3://models", "s3://Not A Bucket/key"])
def test_an_address_without_bucket_or_key_is_refused(s3, target, address):
    assert address in refused(download, address, target, SHA256)


def test_credentials_that_may_not_read_are_said_so(s3, moto, target):
    def check_credentials_after(count: bytes) -> None:
        as_text = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{moto}/moto-api/reset-auth", count, as_text)
        urllib.request.urlopen(request).close()

    check_credentials_after(b"0")
    try:
        assert f"{s3}: forbidden" in refused(download, s3, target, SHA256)
    finally:
        check_credentials_after(b"inf")


def test_no_credentials_are_asked_for(s3, target, monkeypatch):
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert f"{s3}: no credentials; set AWS_ACCESS_KEY_ID" in refused(download, s3, target, SHA256)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    assert f"{s3}: no credentials; set AWS_ACCESS_KEY_ID" in refused(download, s3, target, SHA256)


def test_an_endpoint_where_nobody_is_is_said_so(s3, target, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    line = refused(download, s3, target, SHA256)
    assert "no connection: " in line and "http://127.0.0.1:9" in line and "AWS_ENDPOINT_URL" in line


@pytest.mark.parametrize(("name", "value"), [("AWS_ENDPOINT_URL", "nowhere"), ("AWS_PROFILE", "nobody")])
def test_settings_that_cannot_be_right_are_named(s3, target, monkeypatch, name, value):
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv(name, value)
    line = refused(download, s3, target, SHA256)
    assert value in line and "AWS_*" in line


@pytest.mark.parametrize("fault", ["half", 500, "hang up"])
def test_an_object_store_that_breaks_is_asked_again(server, target, monkeypatch, tmp_path, fault):
    use_s3(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path)
    server.faults = [fault]
    download("s3://bucket/net.pt", target, SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=5120-" if fault == "half" else None]


def weights(source: str, location: object, sha256: str = SHA256) -> Weights:
    return Weights(source=source, location=str(location), sha256=sha256)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder of its own; downloads go there."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_weights_at_an_address_are_fetched_once_by_their_hash_and_name(server, url, here):
    for _ in range(2):
        assert fetch_weights(weights("https", f"{url}?download=1")) == Path(f"downloads/{SHA256[:16]}-net.pt")
    assert (here / f"downloads/{SHA256[:16]}-net.pt").read_bytes() == CONTENT
    assert server.asked == [None]


def test_weights_in_an_object_store_are_fetched(s3, here):
    assert fetch_weights(weights("s3", s3)).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("source", "location"),
    [("https", "s3://models/net.pt"), ("s3", "https://host/net.pt"), ("https", "/net.pt")],
)
def test_an_address_of_another_source_is_refused(source, location):
    line = refused(fetch_weights, weights(source, location))
    assert location in line and f"{source}://" in line


def test_a_relative_file_lies_below_ferd_data(tmp_path, monkeypatch):
    monkeypatch.setenv("FERD_DATA", str(tmp_path))
    put(tmp_path / "teachers" / "net.pt", CONTENT)
    assert fetch_weights(weights("file", "teachers/net.pt")) == tmp_path / "teachers" / "net.pt"


def test_an_absolute_file_needs_no_ferd_data(tmp_path, monkeypatch):
    monkeypatch.delenv("FERD_DATA", raising=False)
    put(tmp_path / "net.pt", CONTENT)
    assert fetch_weights(weights("file", tmp_path / "net.pt")) == tmp_path / "net.pt"


@pytest.mark.parametrize("value", [None, ""])
def test_a_relative_file_without_ferd_data_is_refused(monkeypatch, value):
    monkeypatch.delenv("FERD_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("FERD_DATA", value)
    line = refused(fetch_weights, weights("file", "teachers/net.pt"))
    assert "FERD_DATA is not set" in line and "teachers/net.pt" in line


@pytest.mark.parametrize(("name", "reason"), [("none.pt", "No such file"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, reason):
    path = tmp_path / name
    assert f"{path}: cannot be read: {reason}" in refused(fetch_weights, weights("file", path))


def test_another_file_than_expected_is_refused_and_stays(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(CONTENT)
    line = refused(fetch_weights, weights("file", path, "0" * 64))
    assert f"{path}: its SHA-256 is {SHA256} but {'0' * 64} is expected" in line
    assert path.read_bytes() == CONTENT


def test_weights_of_the_package_are_found_by_name_or_those_there_are_listed(tmp_path, monkeypatch):
    put(tmp_path / "one.safetensors", CONTENT)
    monkeypatch.setattr(storage.resources, "files", lambda package: tmp_path)
    assert fetch_weights(weights("package", "one.safetensors")) == tmp_path / "one.safetensors"
    line = refused(fetch_weights, weights("package", "two.safetensors"))
    assert "'two.safetensors' does not come with the package; these do: one.safetensors" in line


def test_the_folder_of_the_package_is_looked_in():
    line = refused(fetch_weights, weights("package", "no-such.safetensors"))
    assert "'no-such.safetensors' does not come with the package" in line


def test_robustbench_that_is_not_installed_is_asked_for(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench", None)
    model = weights("robustbench", "Rice2020Overfitting")
    assert "'.[robustbench]'" in refused(fetch_weights, model)
    path = Path(f"downloads/{SHA256[:16]}-Rice2020Overfitting.pt")
    put(path, CONTENT)
    assert fetch_weights(model) == path  # nothing is left to ask it for


@pytest.fixture
def zoo(here, monkeypatch) -> list[str]:
    """A stand-in for RobustBench's package, under its names: the file ids it was asked for."""
    asked = []

    def download_gdrive_new(gdrive_id, fname_save):
        asked.append(gdrive_id)
        if gdrive_id == "gone":
            raise OSError("cannot retrieve\nthe file")
        fname_save.write_bytes(CONTENT)

    def models(**file_ids):
        return {"Linf": {name: {"gdrive_id": file_id} for name, file_id in file_ids.items()}}

    names = {
        "robustbench": {},
        "robustbench.model_zoo": {
            "model_dicts": {
                "cifar10": models(Rice2020Overfitting="ten", Gone="gone", Ensemble=["a", "b"]),
                "cifar100": models(Rice2020Overfitting="hundred"),
            }
        },
        "robustbench.model_zoo.enums": {
            "BenchmarkDataset": types.SimpleNamespace(cifar_10="cifar10", cifar_100="cifar100"),
            "ThreatModel": types.SimpleNamespace(Linf="Linf"),
        },
        "robustbench.utils": {"download_gdrive_new": download_gdrive_new},
    }
    for name, content in names.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return asked


@pytest.mark.parametrize(("prefix", "file_id"), [("", "ten"), ("cifar100/", "hundred")])
def test_a_model_of_the_zoo_is_downloaded_once_and_checked(zoo, here, prefix, file_id):
    model = weights("robustbench", f"{prefix}Rice2020Overfitting")
    path = Path(f"downloads/{SHA256[:16]}-Rice2020Overfitting.pt")
    assert fetch_weights(model) == fetch_weights(model) == path
    assert zoo == [file_id]
    line = refused(fetch_weights, model.model_copy(update={"sha256": "0" * 64}))
    assert SHA256 in line and "0" * 64 in line
    assert [file.name for file in (here / "downloads").iterdir()] == [path.name]


@pytest.mark.parametrize(
    "name", ["Nobody2030", "Ensemble", "cifar100/Ensemble", "imagenet/Rice2020Overfitting"]
)
def test_a_model_that_the_zoo_lacks_or_keeps_in_parts_is_refused(zoo, name):
    assert f"{name!r} among its Linf models" in refused(fetch_weights, weights("robustbench", name))
    assert zoo == []


def test_a_model_that_cannot_be_downloaded_is_one_line(zoo, here):
    assert "Gone: cannot retrieve the file; run again" in refused(
        fetch_weights, weights("robustbench", "Gone")
    )
    assert list((here / "downloads").iterdir()) == []


def test_who_waited_for_a_file_that_is_gone_is_alone_with_the_one_that_is_there(tmp_path):
    path, inside, most = tmp_path / "set.lock", [], []

    def work(seconds):
        with storage.alone(path):
            inside.append(1)
            most.append(len(inside))
            time.sleep(seconds)
            inside.pop()

    threads = [threading.Thread(target=work, args=(seconds,)) for seconds in (0.2, 0.5, 0.1, 0.1)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)  # the first deletes the file when the others wait for it
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1] and not path.exists()
