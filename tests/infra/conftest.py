"""What tests of the stack share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder whose name is short wherever pytest's are: a stack's has a socket in it."""
    with tempfile.TemporaryDirectory(prefix="ferd-", dir="/tmp") as folder:
        yield Path(folder)
