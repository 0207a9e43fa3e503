"""Checkpoints, results and the run cache on S3: a second clone takes them and computes nothing."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_in
from tests.services.conftest import commit

pytestmark = pytest.mark.services

STUDENT = "evaluate-digits@resnet8-w8-uniform-noise-s0"
DVC = (sys.executable, "-m", "dvc")


def add_remote(services, folder: Path, url: str) -> None:
    """``make remote`` of the project, with this Python in place of .venv."""
    make = ("make", "--file", str(ROOT / "Makefile"), "READY=", f"BIN={Path(sys.executable).parent}")
    services.run(*make, "remote", f"URL={url}", cwd=folder)


@pytest.fixture(scope="module")
def pushed(reproduced, tmp_path_factory) -> Path:
    """A workspace whose checkpoints, results and run cache are on S3."""
    folder = tmp_path_factory.mktemp("pushed") / "first"
    shutil.copytree(reproduced.workspace, folder, symlinks=True)
    commit(folder, "results")
    add_remote(reproduced, folder, "s3://ferd/sharing")
    reproduced.run(*DVC, "push", cwd=folder)
    reproduced.run(sys.executable, "-m", "tasks.share", STUDENT, cwd=folder)
    return folder


def clone(services, source: Path, target: Path) -> Path:
    """A fresh clone, on another machine as far as DVC can tell."""
    done = run_in(source, "git", "clone", "--quiet", str(source), str(target))
    assert done.returncode == 0, done.stderr
    add_remote(services, target, "s3://ferd/sharing")
    return target


def test_the_remote_is_local_configuration_without_credentials(pushed):
    assert run_in(pushed, "git", "status", "--porcelain", ".dvc/config").stdout == ""
    local = (pushed / ".dvc/config.local").read_text()
    assert "url = s3://ferd/sharing" in local
    assert "key" not in local


def test_a_fresh_clone_pulls_and_finds_nothing_to_do(reproduced, pushed, tmp_path):
    folder = clone(reproduced, pushed, tmp_path / "second")
    reproduced.run(*DVC, "pull", "--with-deps", STUDENT, cwd=folder)
    for name in ("checkpoints/digits/teacher.safetensors", "results/digits/teacher.json"):
        assert (folder / name).read_bytes() == (pushed / name).read_bytes()
    status = reproduced.run(*DVC, "status", "--with-deps", STUDENT, cwd=folder)
    assert "up to date" in status, status
    assert "Running stage" not in reproduced.run(*DVC, "repro", STUDENT, cwd=folder)


def test_what_another_machine_computed_is_not_computed_again(reproduced, pushed, tmp_path):
    """The lock file of the first clone has not come along: its run cache has."""
    folder = clone(reproduced, pushed, tmp_path / "third")
    (folder / "dvc.lock").unlink()
    for path in (folder / "results/digits").glob("**/*.json*"):
        path.unlink()
    said = reproduced.run(*DVC, "repro", "--pull", STUDENT, cwd=folder)
    assert said.count("is cached - skipping run") == 5, said
    assert "Running stage" not in said
    name = "results/digits/resnet8-w8/uniform-noise/s0.json"
    assert (folder / name).read_bytes() == (pushed / name).read_bytes()
