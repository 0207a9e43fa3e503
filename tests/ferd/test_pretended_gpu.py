"""The method on a pretended GPU, in a process of its own: ``tests/ferd/pretended_gpu``."""

import re
import subprocess
import sys

import pytest
from torch.utils import backend_registration

from tests.conftest import ROOT, environment


def test_the_method_runs_on_a_pretended_gpu():
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no interface for devices that are written in Python")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/ferd/pretended_gpu/checks.py"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b\d{2} passed in ", done.stdout), done.stdout  # none was skipped or left out
