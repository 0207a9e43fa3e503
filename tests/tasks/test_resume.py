"""A stage killed at any moment goes on, and ends as if nothing had happened."""

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.conftest import copy_workspace, run_in

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


KILLED_AT = """
import os, signal, sys
from {package} import {module}, process

advance = process.Progress.advance

def advance_and_die(self, done, total, **details):
    advance(self, done, total, **details)
    if done == {units}:
        os.kill(os.getpid(), signal.SIGKILL)

process.Progress.advance = advance_and_die
sys.argv[1:] = {arguments}
{module}.main()
"""


def kill_after(folder: Path, name: str, arguments: list[str], units: int) -> None:
    """Run a stage that is killed when it has reported ``units`` units."""
    package, module = name.split(".")
    program = KILLED_AT.format(package=package, module=module, units=units, arguments=arguments)
    killed = run_in(folder, sys.executable, "-c", program)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_student_killed_after_a_round_ends_with_the_same_bytes(prepared, rounds):
    kill_after(prepared, "tasks.distill", STUDENT, rounds)
    assert not (prepared / CHECKPOINT).exists()
    with (prepared / "ferd" / "losses.py").open("a") as code:
        code.write("# a comment, which is no reason to begin anew\n")
    again = run_in(prepared, sys.executable, "-m", "tasks.distill", *STUDENT)
    assert again.returncode == 0, again.stderr
    events = [json.loads(line) for line in again.stdout.splitlines()]
    assert next(event["done"] for event in events if event["event"] == "progress") == rounds + 1
    assert (prepared / CHECKPOINT).read_bytes() == (prepared / "undisturbed.safetensors").read_bytes()
    for shard in (prepared / "undisturbed.pool").iterdir():
        assert shard.read_bytes() == (prepared / CHECKPOINT.with_suffix(".pool") / shard.name).read_bytes()
    assert not list((prepared / ".resume").glob("distill*"))
    cost = prepared / "results/digits/resnet8-w8/ferd/s1.distill-cost.json"
    assert json.loads(cost.read_text())["resumed"]  # its seconds are the last attempt's
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


def rounds_done(folder: Path) -> list[int]:
    """Those that a stage does that is run now."""
    again = run_in(folder, sys.executable, "-m", "tasks.distill", *STUDENT)
    assert again.returncode == 0, again.stderr
    events = [json.loads(line) for line in again.stdout.splitlines()]
    return [event["done"] for event in events if event["event"] == "progress"]


def test_other_code_never_resumes(prepared):
    kill_after(prepared, "tasks.distill", STUDENT, 2)
    with (prepared / "ferd" / "losses.py").open("a") as code:
        code.write("OTHER = 1\n")
    assert rounds_done(prepared) == [1, 2, 3]
    assert (prepared / CHECKPOINT).read_bytes() == (prepared / "undisturbed.safetensors").read_bytes()
    (prepared / CHECKPOINT).unlink()


def test_other_settings_never_resume(prepared, tmp_path, change_params):
    folder = tmp_path / "workspace"
    copy_workspace(prepared, folder)
    kill_after(folder, "tasks.distill", STUDENT, 2)
    change_params(folder, 0.9, "methods", "ferd", "utae", "gamma")
    assert rounds_done(folder) == [1, 2, 3]
    assert (folder / CHECKPOINT).read_bytes() != (folder / "undisturbed.safetensors").read_bytes()
