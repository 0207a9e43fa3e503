"""What is sent to DVC's remote: of the stages that are named, and all of it or an error."""

import errno
import shutil

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError, PartialCredentialsError
from dvc.config import RemoteConfigError

from ferd.errors import FerdError, Unreachable
from tasks import share
from tasks.remote import set_remote
from tests.conftest import run_in

STAGES = """
stages:
  one: {cmd: cp given one, deps: [given], outs: [one]}
  two: {cmd: cp one two && echo more >> two, deps: [one], outs: [two: {cache: false}]}
  other: {cmd: cp given other && echo other >> other, deps: [given], outs: [other]}
  many: {cmd: mkdir many && cp given many/a && echo b > many/b, deps: [given], outs: [many]}
  group:
    foreach: [x, y]
    do: {cmd: "cp given ${item}", deps: [given], outs: ["${item}"]}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of three stages that have run, with a remote beside it."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "given").write_text("given")
    (folder / "dvc.yaml").write_text(STAGES)
    remote = tmp_path / "remote"
    remote.mkdir()
    for command in (
        ("git", "init", "--quiet"),
        ("dvc", "init", "--quiet"),
        ("dvc", "repro", "--quiet"),
        ("dvc", "remote", "add", "--local", "--default", "remote", str(remote)),
    ):
        done = run_in(folder, *command)
        assert done.returncode == 0, done.stderr
    monkeypatch.chdir(folder)
    return folder


def entries(here):
    return [path for path in (here.parent / "remote").glob("**/runs/*/*/*") if path.is_file()]


def test_a_stage_goes_with_what_it_needs_and_nothing_else(here):
    assert share.push(["two"]) == 2
    assert len(entries(here)) == 2
    assert share.push(["two"]) == 0
    for path in ("one", "two", "dvc.lock"):
        (here / path).unlink()
    shutil.rmtree(here / ".dvc" / "cache")
    said = run_in(here, "dvc", "repro", "--pull", "two").stdout
    assert said.count("is cached - skipping run") == 2, said
    assert (here / "two").read_text() == "givenmore\n"


def test_what_was_pruned_of_other_stages_is_not_missed(here):
    (here / "other").unlink()
    run_in(here, "dvc", "gc", "--workspace", "--force")
    assert share.push(["one"]) == 1


def test_a_stage_that_is_not_up_to_date_is_refused(here):
    (here / "given").write_text("changed")
    with pytest.raises(FerdError, match=r"^one: is not up to date, nothing was sent; `dvc repro one`$"):
        share.push(["one"])
    assert entries(here) == []


def test_an_entry_that_the_remote_does_not_take_is_an_error(here):
    """DVC itself would pass over it, and every other machine compute the stage again."""
    (here.parent / "remote" / "runs").write_text("in the way")
    (here.parent / "remote" / "files").mkdir()
    (here.parent / "remote" / "files" / "md5").mkdir()
    with pytest.raises(FerdError, match=r"^DVC's remote.*: Not a directory; `dvc remote list` shows its"):
        share.push(["one"])


def test_sharing_is_refused_before_anything_is_computed_where_there_is_no_remote(here):
    share.require()
    assert share.has_remote(here)
    assert [path for path in (here.parent / "remote").rglob("*") if path.is_file()] == []
    assert run_in(here, "dvc", "remote", "remove", "--local", "remote").returncode == 0
    assert not share.has_remote(here)
    with pytest.raises(FerdError, match=r"^DVC has no remote here; `make remote URL=s3://BUCKET/FOLDER`$"):
        share.require()
    with pytest.raises(FerdError, match="DVC has no remote here"):
        share.push(["one"])


def test_sharing_is_refused_before_anything_is_computed_where_the_remote_takes_nothing(here):
    (here.parent / "remote").rmdir()
    (here.parent / "remote").write_text("a file in its place")
    with pytest.raises(FerdError, match=r"^DVC's remote"):
        share.require()


def test_no_entry_says_that_there_are_files_that_could_not_be_sent(here):
    (here.parent / "remote/files").write_text("in the way")
    with pytest.raises(FerdError):
        share.push(["two"])
    assert entries(here) == []


def test_a_file_that_the_remote_has_lost_is_sent_again(here):
    """DVC would not look: the remote has the list of the folder's files."""
    assert share.push(["many"]) == 3
    content = {path.read_text(): path for path in (here.parent / "remote/files").rglob("*") if path.is_file()}
    content["b\n"].unlink()
    assert share.push(["many"]) == 1
    assert content["b\n"].read_text() == "b\n"


def test_of_a_group_no_stage_may_be_out_of_date(here):
    assert share.push(["group"]) == 1  # both have the same bytes
    (here / "y").write_text("changed")
    with pytest.raises(FerdError, match=r"^group@y: is not up to date, nothing was sent; `dvc repro"):
        share.push(["group"])


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"AWS_ENDPOINT_URL": "garbage"},
            r"^DVC's remote: Invalid endpoint: garbage; correct the AWS_",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_SECRET_ACCESS_KEY": ""},
            r"^DVC's remote: Partial credentials found in env, .*; correct the AWS_\* variables$",
        ),
    ],
)
def test_what_no_other_try_would_mend_is_no_outage(here, monkeypatch, variables, said):
    variables = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "x",
    } | variables
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    set_remote("s3://ferd/dvc")
    with pytest.raises(FerdError, match=said) as raised:
        share.push(["one"])
    assert not isinstance(raised.value, Unreachable)


AWAY = "run it again when the remote answers"


@pytest.mark.parametrize(
    ("error", "said", "may_pass"),
    [
        (RemoteConfigError("none"), "DVC has no remote here; `make remote URL=s3://BUCKET/FOLDER`", False),
        (NoCredentialsError(), r"DVC's remote: Unable to locate credentials; correct the AWS_\*", False),
        (
            PartialCredentialsError(provider="env", cred_var="a"),
            "DVC's remote: Partial cred.*; correct",
            False,
        ),
        (PermissionError(errno.EACCES, "Forbidden"), "DVC's remote: Forbidden; correct its perm", False),
        (FileNotFoundError(errno.ENOENT, "No bucket", "ferd"), "DVC's remote ferd: No bucket; `dvc", False),
        (OSError(errno.ENOTCONN, "Not connected"), f"DVC's remote: Not connected; {AWAY}", True),
        (EndpointConnectionError(endpoint_url="x"), f"DVC's remote: Could not connect .*; {AWAY}", True),
    ],
)
def test_only_of_a_remote_that_does_not_answer_another_try_is_worth_it(error, said, may_pass):
    with pytest.raises(FerdError, match=f"^{said}") as raised, share._remote_errors():
        raise error
    assert isinstance(raised.value, Unreachable) is may_pass


def test_a_remote_is_an_address_or_a_folder_that_is_there(here, tmp_path):
    for url in ("s3:/ferd", "ferd/dvc", "s3://", str(tmp_path / "nowhere"), ""):
        with pytest.raises(FerdError, match="is neither an address such as s3://BUCKET/FOLDER nor"):
            set_remote(url)
    (tmp_path / "größe").mkdir()
    for url in ("s3://ferd/größe", str(tmp_path / "größe")):
        with pytest.raises(FerdError, match="takes letters of ASCII alone; choose another"):
            set_remote(url)
    (tmp_path / "store").mkdir()
    set_remote(str(tmp_path / "store"))
    assert share.push(["one"]) == 1
    assert "timeout" not in (here / ".dvc/config.local").read_text()
    set_remote("s3://ferd/dvc")
    config = (here / ".dvc/config.local").read_text()
    assert "url = s3://ferd/dvc" in config and "verify = True" in config and "read_timeout = 30" in config
