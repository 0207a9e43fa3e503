"""What an installation stands on."""

import os
import shutil
import sys
import tomllib
import venv
from importlib.metadata import version
from pathlib import Path

from packaging.version import Version

from tests.conftest import ROOT, own_folder, run_in


def test_pins_that_no_resolver_knows_of_are_kept():
    """A newer fastapi breaks every Prefect flow; a newer sqlalchemy stops Prefect's schedules."""
    assert Version(version("fastapi")) < Version("0.151")
    assert Version(version("sqlalchemy")) < Version("2.1")


def test_constraints_hold_exact_versions_and_no_addresses():
    lines = [
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    assert len(lines) > 100
    for line in lines:
        assert line.count("==") == 1, line
        assert "/" not in line, line


def test_an_installation_of_the_library_has_all_of_its_files():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {file.parent for file in (ROOT / "ferd").rglob("__init__.py")}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} == set(settings["packages"])
    listed = {
        file
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for file in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    others = {file for file in (ROOT / "ferd").rglob("*.*") if file.suffix != ".py"}
    assert {file for file in others if not is_left_over(file)} == listed


def is_left_over(file: Path) -> bool:
    """Whether another program has left it: Python, an editor, a desktop."""
    return any(part.startswith(".") or part == "__pycache__" for part in file.relative_to(ROOT).parts)


def test_a_clone_has_the_bytes_that_were_committed_whatever_git_makes_of_line_ends(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    shutil.copy(ROOT / ".gitattributes", here)
    (here / "params.yaml").write_bytes(b"a: 1\n")
    (here / "table.csv").write_bytes(b"a,b\r\n")
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for command in (
        ("init", "--quiet"),
        ("-c", "core.autocrlf=input", "add", "--all"),
        (*identity, "commit", "--quiet", "--message", "tiny"),
        ("clone", "--quiet", "--config", "core.autocrlf=true", str(here), str(there)),
    ):
        done = run_in(here, "git", *command)
        assert done.returncode == 0, done.stderr
    assert (there / "params.yaml").read_bytes() == b"a: 1\n"
    assert (there / "table.csv").read_bytes() == b"a,b\r\n"


def test_tests_do_not_see_the_shell_and_the_home_of_who_runs_them():
    told = "import os, tests.conftest; print(*sorted(os.environ))"
    shell = dict.fromkeys(("GIT_DIR", "AWS_PROFILE", "MLFLOW_TRACKING_URI", "FERD_ALERT_WEBHOOK"), "/other")
    done = run_in(ROOT, sys.executable, "-c", told, FERD_DATA="/images", **shell)
    names = done.stdout.split()
    assert "FERD_DATA" in names and not set(shell) & set(names), done.stderr
    own = own_folder()
    assert Path(os.environ["PREFECT_HOME"]).parent == Path(os.environ["GIT_CONFIG_GLOBAL"]).parent == own
    ignored = run_in(ROOT, "git", "config", "--global", "core.excludesFile")
    assert ignored.stdout == f"{os.devnull}\n"


def made(folder):
    """`make .venv/.installed` with a Python that only says how it was called."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "python").write_text(
        '#!/bin/sh\necho "$PYTHONSAFEPATH$@" >> called\ncase "$1" in -c) exit 0;; esac\nexit 1\n', "utf-8"
    )
    (folder / "python").chmod(0o755)
    done = run_in(folder, "make", "PYTHON=./python", ".venv/.installed", PYTHONSAFEPATH="1")
    called = folder / "called"
    return done, called.read_text("utf-8") if called.exists() else ""


def test_an_environment_without_pip_is_made_anew(tmp_path):
    (tmp_path / ".git").mkdir()
    venv.create(tmp_path / ".venv", with_pip=False)
    done, called = made(tmp_path)
    assert done.returncode
    assert "-m venv --clear .venv" in called.splitlines()  # by a Python that finds modules here


def test_a_folder_without_git_is_refused_before_anything_is_installed(tmp_path):
    done, called = made(tmp_path)
    assert done.returncode
    assert "this is no Git repository, which DVC needs: git clone it" in done.stdout
    assert not called and not (tmp_path / ".venv").exists()
