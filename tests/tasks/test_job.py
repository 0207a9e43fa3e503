"""What a stage computes, by its command."""

from pathlib import Path

import pytest

from ferd.errors import FerdError
from tasks.job import Job, job_of

STUDENT = Path("checkpoints/digits/resnet8-w8/ferd/s2.safetensors")
TEACHER = Path("checkpoints/digits/teacher.safetensors")
RESULTS = Path("results/digits")


@pytest.mark.parametrize(
    ("command", "expected", "spent"),
    [
        ("tasks.teacher digits", Job("teacher", "digits", checkpoint=TEACHER), "teacher.train-cost.json"),
        (
            "tasks.judge digits",
            Job("judge", "digits", checkpoint=TEACHER.with_stem("judge")),
            "judge.train-cost.json",
        ),
        (
            "tasks.distill digits resnet8-w8 ferd s2",
            Job("distill", "digits", "resnet8-w8", "ferd", 2, STUDENT),
            "resnet8-w8/ferd/s2.distill-cost.json",
        ),
        (
            f"tasks.evaluate {STUDENT}",
            Job("evaluate", "digits", "resnet8-w8", "ferd", 2, STUDENT),
            "resnet8-w8/ferd/s2.evaluate-cost.json",
        ),
        (
            f"tasks.analyse {TEACHER}",
            Job("analyse", "digits", None, "teacher", 0, TEACHER),
            "teacher.analyse-cost.json",
        ),
    ],
)
def test_a_command_says_what_is_computed_for_whom_and_where_its_cost_is(command, expected, spent):
    assert job_of(command.split()) == expected
    assert job_of(command.split()).spent == RESULTS / spent


@pytest.mark.parametrize("command", ["", "tasks.report", "tasks.distill digits", "mine.train digits"])
def test_a_command_of_no_benchmark_is_no_job(command):
    assert job_of(command.split(" ")) is None


@pytest.mark.parametrize("file", ["mine.safetensors", "/elsewhere/digits/teacher.safetensors"])
def test_a_checkpoint_that_is_kept_elsewhere_is_refused(file):
    with pytest.raises(FerdError, match=r"^\S+\.safetensors: no checkpoint's place; from the project's root"):
        job_of(["tasks.evaluate", file])


def test_images_have_no_checkpoint():
    assert job_of(["tasks.data", "digits"]) == Job("data", "digits")
