"""Trials: what overrides reach, and what is refused since nothing looks at it."""

import sys

import pytest

from ferd.errors import FerdError
from tasks.validate import override
from tests.conftest import ROOT, run_in

PARAMS = ROOT / "params.yaml"
SCHEDULE = "benchmarks.digits.distillation"


def test_every_override_counts_also_of_options_that_are_repeated(workspace):
    wrong = ("--set", f"{SCHEDULE}.rounds=none", "--set", f"{SCHEDULE}.batch_size=32")
    done = run_in(workspace, sys.executable, "-m", "tasks.validate", "--benchmark", "digits", *wrong)
    assert done.returncode == 2
    assert done.stderr.startswith(f"validate: {SCHEDULE}.rounds")
    settings = override(PARAMS, [f"{SCHEDULE}.rounds=3", f"{SCHEDULE}.batch_size=32"])
    schedule = settings.benchmark("digits").distillation
    assert (schedule.rounds, schedule.batch_size) == (3, 32)


@pytest.mark.parametrize(
    "key",
    ["benchmarks.digits.data.dataset", "benchmarks.digits.data", "benchmarks.digits.evaluation.attacks"],
)
def test_an_override_of_what_nothing_looks_at_is_refused(key):
    with pytest.raises(FerdError, match=rf"^--set {key}=1: \S+ is not looked at here; take that one away$"):
        override(PARAMS, [f"{key}=1"])


def test_a_teacher_without_a_method_is_refused(workspace):
    command = ("tasks.validate", "--benchmark", "digits", "--teacher", "given.safetensors")
    done = run_in(workspace, sys.executable, "-m", *command)
    assert (done.returncode, done.stderr) == (
        2,
        "validate: --teacher is who a student is distilled from; give a --method, too\n",
    )
