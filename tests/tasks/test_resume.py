"""A stage killed at any moment goes on, and ends as if nothing had happened."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import copy_workspace, environment, run_in

STUDENT = ["digits", "resnet8-w8", "ferd", "s1"]
CHECKPOINT = Path("checkpoints/digits/resnet8-w8/ferd/s1.safetensors")


@pytest.fixture(scope="module")
def prepared(finished, tmp_path_factory):
    """A workspace with a teacher, and the student of an undisturbed run."""
    folder = tmp_path_factory.mktemp("resume") / "workspace"
    copy_workspace(finished, folder)
    undisturbed = run_in(folder, sys.executable, "-m", "tasks.distill", *STUDENT)
    assert undisturbed.returncode == 0, undisturbed.stderr
    (folder / CHECKPOINT).rename(folder / "undisturbed.safetensors")
    shutil.move(folder / CHECKPOINT.with_suffix(".pool"), folder / "undisturbed.pool")
    return folder


def kill_after(folder: Path, module: str, arguments: list[str], units: int) -> None:
    """Run a stage and kill it when it has reported ``units`` units."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "progress" and event["done"] == units:
                process.send_signal(signal.SIGKILL)
                break
        else:
            pytest.fail("the stage ended before it could be killed")
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_student_killed_after_a_round_ends_with_the_same_bytes(prepared, rounds):
    kill_after(prepared, "tasks.distill", STUDENT, rounds)
    assert not (prepared / CHECKPOINT).exists()
    again = run_in(prepared, sys.executable, "-m", "tasks.distill", *STUDENT)
    assert again.returncode == 0, again.stderr
    events = [json.loads(line) for line in again.stdout.splitlines()]
    assert next(event["done"] for event in events if event["event"] == "progress") == rounds + 1
    assert (prepared / CHECKPOINT).read_bytes() == (prepared / "undisturbed.safetensors").read_bytes()
    for shard in (prepared / "undisturbed.pool").iterdir():
        assert shard.read_bytes() == (prepared / CHECKPOINT.with_suffix(".pool") / shard.name).read_bytes()
    assert not list((prepared / ".resume").glob("distill*"))
    (prepared / CHECKPOINT).unlink()


def test_a_teacher_killed_after_an_epoch_ends_with_the_same_bytes(prepared):
    teacher = prepared / "checkpoints/digits/teacher.safetensors"
    undisturbed = teacher.read_bytes()
    kill_after(prepared, "tasks.teacher", ["digits"], 1)
    assert teacher.read_bytes() == undisturbed
    teacher.unlink()
    again = run_in(prepared, sys.executable, "-m", "tasks.teacher", "digits")
    assert again.returncode == 0, again.stderr
    assert teacher.read_bytes() == undisturbed


def test_a_student_killed_when_all_but_the_clean_up_was_done_is_finished_again(prepared):
    program = (
        "import os, sys; from tasks import distill, process; process.discard = lambda folder: os._exit(9); "
        f"sys.argv[1:] = {STUDENT}; distill.main()"
    )
    assert run_in(prepared, sys.executable, "-c", program).returncode == 9
    (prepared / CHECKPOINT).unlink()
    shutil.rmtree(prepared / CHECKPOINT.with_suffix(".pool"))  # as DVC does before it runs a stage
    again = run_in(prepared, sys.executable, "-m", "tasks.distill", *STUDENT)
    assert again.returncode == 0, again.stderr
    assert (prepared / CHECKPOINT).read_bytes() == (prepared / "undisturbed.safetensors").read_bytes()
    assert len(list((prepared / CHECKPOINT.with_suffix(".pool")).iterdir())) == 3
    (prepared / CHECKPOINT).unlink()


def test_other_settings_never_resume(prepared, change_params):
    kill_after(prepared, "tasks.distill", STUDENT, 2)
    change_params(prepared, 0.9, "methods", "ferd", "utae", "gamma")
    again = run_in(prepared, sys.executable, "-m", "tasks.distill", *STUDENT)
    events = [json.loads(line) for line in again.stdout.splitlines()]
    assert [event["done"] for event in events if event["event"] == "progress"] == [1, 2, 3]
    assert (prepared / CHECKPOINT).read_bytes() != (prepared / "undisturbed.safetensors").read_bytes()
