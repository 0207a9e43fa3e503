"""Two workers in separate clones share a grid: each stage once, wherever."""

import shutil
import sys

import pytest

from tests.services.test_sharing import add_remote

pytestmark = pytest.mark.services


def test_two_workers_in_separate_clones_share_a_grid(reproduced, tmp_path):
    student = "evaluate-digits@resnet8-w8-uniform-noise-s0"
    add_remote(reproduced, reproduced.workspace, "s3://ferd/grid")
    reproduced.run(sys.executable, "-m", "tasks.share", "evaluate-teacher@digits", student)
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
