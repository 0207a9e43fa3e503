"""Prefect's server for one command: when it runs, and what ends it."""

import os
import sqlite3
import subprocess
import sys
import urllib.request
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from prefect import flow, get_run_logger
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from ferd.errors import FerdError
from flows.server import own_server
from tests.conftest import ROOT, environment

HOLD = """
import sys
from flows.server import own_server

with own_server():
    print("up", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def no_server(monkeypatch, prefect_home):
    """Prefect's settings as they are where nobody has made any."""
    monkeypatch.setenv("PREFECT_HOME", str(prefect_home))
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield


def hold(**variables):
    """A command that holds a server until its standard input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=ROOT,
        env=environment() | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def servers():
    own = psutil.Process().children(recursive=True)
    return [child for child in own if is_server(child)]


def is_server(process):
    try:
        return "flows.server" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


def test_a_server_answers_in_the_block_and_has_ended_after_it(no_server):
    with own_server():
        with urllib.request.urlopen(f"{PREFECT_API_URL.value()}/health") as answer:
            assert answer.read() == b"true"
        (server,) = servers()
        assert os.getsid(server.pid) == server.pid != os.getsid(0)
    assert PREFECT_API_URL.value() is None
    assert not server.is_running()


def test_what_a_flow_said_last_arrives(no_server, prefect_home):
    """Prefect sends logs and events in the background, seconds later: so long the server stays."""

    @flow(name="brief")
    def brief():
        get_run_logger().critical("the last word")  # flows say no less to Prefect

    with own_server():
        brief()
    with closing(sqlite3.connect(prefect_home / "prefect.db")) as database:
        assert ("the last word",) in database.execute("select message from log").fetchall()


def test_none_is_started_where_the_settings_name_one():
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}), own_server():
        assert PREFECT_API_URL.value() == "http://127.0.0.1:1/api"
        assert servers() == []


def test_one_that_does_not_start_is_a_line(no_server, monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "nonsense")
    with pytest.raises(FerdError, match=r"own server does not start \(.*[cC]onnection"), own_server():
        pass
    assert servers() == []


def test_a_home_that_cannot_be_is_a_line(no_server, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", "/proc/nowhere")
    with (
        temporary_settings({PREFECT_HOME: Path("/proc/nowhere")}),
        pytest.raises(FerdError, match=r"^/proc/nowhere: No such file or directory; set PREFECT_HOME"),
        own_server(),
    ):
        pass


def test_those_that_start_at_once_on_a_fresh_machine_do_not_meet(tmp_path):
    """Each makes Prefect's tables where they are not there, and two at once would do so twice."""
    own = {"PREFECT_HOME": str(tmp_path), "http_proxy": "http://127.0.0.1:9"}
    holding = [hold(**own) for _ in range(2)]
    assert [command.communicate()[0] for command in holding] == ["up\n", "up\n"]


def test_it_ends_with_a_command_that_is_killed(prefect_home):
    with hold(PREFECT_HOME=str(prefect_home)) as command:
        assert command.stdout.readline() == "up\n"
        (server,) = servers()
        command.kill()
        command.wait()
    server.wait(120)
    assert not server.is_running()
