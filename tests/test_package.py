"""What an installation stands on."""

import tomllib
from importlib.metadata import version

from packaging.version import Version

from tests.conftest import ROOT


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
