"""Two workers in separate clones share a grid: each stage once, wherever."""

import shutil
import signal
import subprocess
import sys

import pytest

from tests.conftest import environment, heed_interrupts, wait_until
from tests.services.conftest import processes_below
from tests.services.test_sharing import add_remote

pytestmark = pytest.mark.services


def test_two_workers_in_separate_clones_share_a_grid(reproduced, tmp_path):
    add_remote(reproduced, reproduced.workspace, "s3://ferd/grid")  # empty: the grid sends the teacher
    asking, second = tmp_path / "asking", tmp_path / "second"
    for folder in (asking, second):
        shutil.copytree(reproduced.workspace, folder, symlinks=True)
    with reproduced.worker(second, "second"):
        said = reproduced.run(
            *(sys.executable, "-m", "flows.grid", "--methods", "uniform-noise", "--seeds", "0", "1", "2"),
            cwd=asking,
        )
    assert "4 stages for the workers" in said
    for seed in (1, 2):
        name = f"results/digits/resnet8-w8/uniform-noise/s{seed}.distill-cost.json"
        clones = [folder for folder in (asking, second, reproduced.workspace) if (folder / name).exists()]
        costs = {(folder / name).read_text() for folder in clones}
        assert len(costs) == 1  # who computes a stage anew writes other seconds
        assert asking in clones


def test_a_grid_that_is_stopped_stops_its_stages_on_the_workers(reproduced, tmp_path):
    folder = tmp_path / "asking"
    shutil.copytree(reproduced.workspace, folder, symlinks=True)
    add_remote(reproduced, folder, "s3://ferd/stopped")
    command = [sys.executable, "-m", "flows.grid", "--methods", "no-fae", "--seeds", "0"]
    stage = {"name": {"any_": ["distill-digits@resnet8-w8-no-fae-s0"]}}

    def those_in(*states):
        wanted = {"flow_runs": {**stage, "state": {"type": {"any_": states}}}}
        return {run["id"] for run in reproduced.api("/flow_runs/filter", wanted)}

    left = those_in("RUNNING", "CANCELLED")  # by tests that kill what runs the stage

    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment() | reproduced.environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    ) as grid:
        wait_until(lambda: those_in("RUNNING") - left, 120, reproduced.log)
        grid.send_signal(signal.SIGINT)
        _, said = grid.communicate(timeout=60)
    assert grid.returncode == 130
    assert said.splitlines()[-1] == "grid: stopped; run it again to go on from here"
    wait_until(lambda: those_in("CANCELLED") - left, 120, reproduced.log)
    stage_command = "-m tasks.distill digits resnet8-w8 no-fae s0"
    processes = processes_below(folder) + processes_below(reproduced.workspace)
    commands = [" ".join(process.info["cmdline"] or ()) for process in processes]
    assert not [command for command in commands if command.endswith(stage_command)]
