"""A deployment run by the worker; what its form asks for."""

import json

import pytest

pytestmark = pytest.mark.services


def test_a_deployment_is_run_by_the_worker(reproduced):
    result = json.loads(
        (reproduced.workspace / "results/digits/resnet8-w8/uniform-noise/s0.json").read_text()
    )
    assert result["schema"] == "ferd-result/1"
