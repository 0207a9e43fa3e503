"""Several machines, as far as one can show it: a Ray cluster of a head and a second node."""

import json
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import environment, free_port, wait_until

pytestmark = pytest.mark.services

PYTHON = Path(sys.executable)
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # without it, anybody's code runs


@pytest.fixture
def ray_cluster(reproduced, tmp_path):
    """A head and a second node, each in a clone of its own, of one CPU; -> the address."""
    pytest.importorskip("prefect_ray", reason="needs the extra `ray`")
    address = f"127.0.0.1:{free_port()}"
    own = environment() | reproduced.environment | TOKEN | {"RAY_USAGE_STATS_ENABLED": "0"}
    temporary = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets: a short path
    common = [str(PYTHON.parent / "ray"), "start", "--block", "--num-cpus", "1", "--num-gpus", "0"]
    common += ["--disable-usage-stats", "--object-store-memory", str(100 * 2**20)]
    here = ["--node-ip-address", "127.0.0.1"]
    head = ["--head", "--port", address.split(":")[1], "--include-dashboard", "false", *here]
    head += ["--temp-dir", str(temporary)]
    nodes = []
    try:
        for number, role in enumerate((head, ["--address", address, *here])):
            workspace = tmp_path / f"node-{number}"
            shutil.copytree(reproduced.workspace, workspace, symlinks=True)
            variables = {"FERD_WORKSPACE": str(workspace), "PYTHONPATH": str(workspace)}
            with (workspace / "ray.log").open("w") as log:
                nodes.append(
                    subprocess.Popen(
                        [*common, *role], cwd=workspace, env=own | variables, stdout=log, stderr=log
                    )
                )
        wait_until(lambda: is_open(address), 120, (tmp_path / "node-0" / "ray.log").read_text)
        yield address
    finally:
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            try:
                node.wait(timeout=30)
            except subprocess.TimeoutExpired:
                node.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def is_open(address):
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_a_ray_cluster_of_two_nodes_runs_a_sweep(reproduced, ray_cluster, tmp_path):
    folder = tmp_path / "asked"
    shutil.copytree(reproduced.workspace, folder, symlinks=True)
    sweep = [str(PYTHON), "-m", "flows.sweep", "--key", "threat_model.epsilon", "--values", "0.05", "0.1"]
    said = reproduced.run(
        *sweep, "--method", "uniform-noise", "--seeds", "0", "1", "--ray", ray_cluster, cwd=folder, **TOKEN
    )
    assert "4 of 4 points to run" in said
    [file] = (folder / "results/sweeps").glob("*.json")
    points = json.loads(file.read_text())["points"]
    assert [(point["value"], point["result"]["seed"]) for point in points] == [
        (0.05, 0),
        (0.05, 1),
        (0.1, 0),
        (0.1, 1),
    ]
    # Each point was computed in one of the clones, and the two shared the work.
    computed = [len(list((tmp_path / f"node-{n}").glob("sweeps/*/checkpoints/**/s*.pool"))) for n in (0, 1)]
    assert sum(computed) == 4
    assert min(computed) >= 1
    # The value that params.yaml has gives the figures that the DVC stages gave.
    staged = json.loads((folder / "results/digits/resnet8-w8/uniform-noise/s0.json").read_text())
    assert points[2]["result"]["attacks"] == staged["attacks"]
    again = reproduced.run(
        *sweep, "--method", "uniform-noise", "--seeds", "0", "1", "--ray", ray_cluster, cwd=folder, **TOKEN
    )
    assert "0 of 4 points to run" in again
