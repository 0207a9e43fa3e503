"""What an installation stands on."""

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
