"""What tests of flows share."""

import signal
from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    """An empty Prefect in this process."""
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def handlers() -> Iterator[None]:
    """This process heeds signals as before when a test has entered ``as_command``."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
