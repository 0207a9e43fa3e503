"""What tests of flows share."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.server import own_server
from tests.conftest import run_in


def make_tables(folder: Path) -> None:
    """Make the tables of Prefect's database in its home; without them a server starts in twice the time."""
    done = run_in(folder, "prefect", "server", "database", "upgrade", "--yes", PREFECT_HOME=str(folder))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def prefect_homes(
    made_once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Path]:
    """``prefect_homes()``: a new Prefect home, in which nothing has run."""
    template = made_once("prefect", make_tables)

    def new() -> Path:
        return Path(shutil.copytree(template, tmp_path_factory.mktemp("home") / "prefect"))

    return new


@pytest.fixture
def prefect_home(prefect_homes: Callable[[], Path]) -> Path:
    """A Prefect home of a test's own."""
    return prefect_homes()


@pytest.fixture(scope="module")
def prefect_server(prefect_homes: Callable[[], Path]) -> Iterator[None]:
    """A Prefect server of one module's own."""
    home = prefect_homes()
    with (
        pytest.MonkeyPatch.context() as patch,
        temporary_settings({PREFECT_HOME: home}, restore_defaults={PREFECT_API_URL}),
    ):
        patch.setenv("PREFECT_HOME", str(home))
        with own_server():
            yield
