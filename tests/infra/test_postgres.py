"""The stack's PostgreSQL: of which version, and that a cluster is whole or not there."""

import os
import subprocess
from pathlib import Path

import pytest

from ferd.errors import FerdError
from infra import postgres, settings


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The cluster of a new folder, and no real ``initdb``."""
    monkeypatch.setattr(postgres, "postgres_binaries", lambda _: Path("/usr/bin"))
    return postgres.Postgres(tmp_path, settings.read())


def test_a_cluster_is_opened_by_the_version_that_made_it(tmp_path, monkeypatch):
    """Scripts that only say a version stand for two installed ones: 17 on PATH, 16 in Debian's place."""
    places = {}
    for major in ("16", "17"):
        places[major] = tmp_path / major / "bin"
        places[major].mkdir(parents=True)
        for name in ("postgres", "initdb"):
            (places[major] / name).write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {major}.4 (Debian)'\n")
            (places[major] / name).chmod(0o755)
    cluster = tmp_path / "cluster"
    monkeypatch.setattr(postgres.Path, "glob", lambda self, _: iter([places["16"]]))
    monkeypatch.setattr(postgres.shutil, "which", lambda _: str(places["17"] / "postgres"))
    assert postgres.postgres_binaries(cluster) == places["17"]
    cluster.mkdir()
    (cluster / "PG_VERSION").write_text("16\n")
    assert postgres.postgres_binaries(cluster) == places["16"]
    (cluster / "PG_VERSION").write_text("15\n")
    with pytest.raises(FerdError, match=r"of PostgreSQL 15, and installed is 17, 16; `apt-get"):
        postgres.postgres_binaries(cluster)


def initdb(command: list, **_: object) -> subprocess.CompletedProcess:
    """Make a cluster's first file."""
    cluster = Path(command[command.index("--pgdata") + 1])
    cluster.mkdir(exist_ok=True)
    (cluster / "PG_VERSION").touch()
    return subprocess.CompletedProcess(command, 0)


def test_a_cluster_is_there_whole_or_not_at_all(cluster, monkeypatch):
    def killed(command: list, **_: object) -> None:
        initdb(command)
        raise SystemExit

    monkeypatch.setattr(postgres.subprocess, "run", killed)
    with pytest.raises(SystemExit):
        cluster.initialise("secret")
    assert not cluster.data.exists()

    leftover = cluster.data.with_name("postgresql.part-killed") / "cluster"
    leftover.mkdir(parents=True)
    monkeypatch.setattr(postgres.subprocess, "run", initdb)
    cluster.initialise("secret")
    assert (cluster.data / "PG_VERSION").exists()
    assert list(cluster.data.parent.glob("postgresql.part-*")) == []


def test_a_cluster_is_made_whatever_the_shells_locale_is(cluster, monkeypatch):
    """It may be one that is not on this machine, as ssh brings it along; then ``initdb`` would refuse."""
    given = {}

    def run(command: list, **options: dict[str, str]) -> subprocess.CompletedProcess:
        given.update(options["env"])
        return initdb(command)

    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    monkeypatch.setattr(postgres.subprocess, "run", run)
    cluster.initialise("secret")
    assert given["LC_ALL"] == "C" and given["PATH"] == os.environ["PATH"]


def test_what_is_no_cluster_is_not_replaced(cluster, monkeypatch):
    cluster.data.mkdir()
    (cluster.data / "mine").touch()
    monkeypatch.setattr(postgres.subprocess, "run", initdb)
    with pytest.raises(FerdError, match="move it away"):
        cluster.initialise("secret")
    assert [path.name for path in cluster.data.iterdir()] == ["mine"]
