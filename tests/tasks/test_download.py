"""Downloads over connections that break, from servers that refuse, and what is kept and removed."""

import hashlib
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest

from ferd.errors import FerdError
from tasks import download as module
from tasks.download import download
from tests.tasks.conftest import CONTENT, SHA256, use_s3

pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "folder" / "net.pt"


@pytest.fixture
def part(target) -> Path:
    return target.with_name("net.pt.part")


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
    clock = SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic)  # of others nothing is noted
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 1.0)
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


def test_a_part_that_is_whole_asks_nobody(server, url, target, part):
    put(part, CONTENT)
    download(url, target, SHA256)
    assert target.read_bytes() == CONTENT and server.asked == [] and not part.exists()


def test_a_part_that_is_longer_than_the_whole_begins_anew(server, url, target, part):
    put(part, CONTENT + b"more")
    download(url, target, SHA256)
    assert target.read_bytes() == CONTENT and server.asked == [f"bytes={len(CONTENT) + 4}-", None]


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
    monkeypatch.setattr(module, "PROGRESS_SECONDS", -1.0)
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


@pytest.mark.parametrize("fault", ["half", 500, 408, 429, "hang up"])
def test_an_object_store_that_breaks_is_asked_again(server, target, monkeypatch, tmp_path, fault):
    use_s3(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path)
    server.faults = [fault]
    download("s3://bucket/net.pt", target, SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=5120-" if fault == "half" else None]
