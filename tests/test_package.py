"""What an installation stands on."""

import shutil
import tomllib
import venv
from importlib.metadata import version

from packaging.version import Version

from tests.conftest import ROOT, run_in


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
    others = {file for file in (ROOT / "ferd").rglob("*.*") if file.suffix not in (".py", ".pyc")}
    assert others == listed


def made(folder):
    """`make .venv/.installed` with a Python that only says how it was called."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "python").write_text(
        '#!/bin/sh\necho "$@" >> called\ncase "$1" in -c) exit 0;; esac\nexit 1\n', "utf-8"
    )
    (folder / "python").chmod(0o755)
    done = run_in(folder, "make", "PYTHON=./python", ".venv/.installed")
    called = folder / "called"
    return done, called.read_text("utf-8") if called.exists() else ""


def test_an_environment_without_pip_is_made_anew(tmp_path):
    (tmp_path / ".git").mkdir()
    venv.create(tmp_path / ".venv", with_pip=False)
    done, called = made(tmp_path)
    assert done.returncode
    assert "-m venv --clear .venv" in called


def test_a_folder_without_git_is_refused_before_anything_is_installed(tmp_path):
    done, called = made(tmp_path)
    assert done.returncode
    assert "this is no Git repository, which DVC needs: git clone it" in done.stdout
    assert not called and not (tmp_path / ".venv").exists()
