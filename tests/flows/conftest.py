"""What tests of flows share."""

from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    """An empty Prefect in this process."""
    with prefect_test_harness(server_startup_timeout=120):
        yield
