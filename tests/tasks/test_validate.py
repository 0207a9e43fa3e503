"""Trials: what overrides reach, and what is refused since nothing looks at it."""

import sys

import pytest
from dvc.utils.serialize import LOADERS

from ferd.errors import FerdError
from tasks.params import read_content, written
from tasks.validate import looked_at, override
from tests.conftest import ROOT, run_in

PARAMS = ROOT / "params.yaml"
SCHEDULE = "benchmarks.digits.distillation"
METHOD = ("--method", "ferd")


def test_every_override_counts_also_of_options_that_are_repeated(workspace):
    wrong = ("--set", f"{SCHEDULE}.rounds=none", "--set", f"{SCHEDULE}.batch_size=32")
    done = run_in(workspace, sys.executable, "-m", "tasks.validate", "--benchmark", "digits", *wrong, *METHOD)
    assert done.returncode == 2
    assert done.stderr.startswith(f"validate: {SCHEDULE}.rounds")
    given = [f"{SCHEDULE}.rounds=3", f"{SCHEDULE}.batch_size=32"]
    settings = override(PARAMS, given, looked_at("digits", "ferd"))
    schedule = settings.benchmark("digits").distillation
    assert (schedule.rounds, schedule.batch_size) == (3, 32)


@pytest.mark.parametrize(
    ("key", "method"),
    [
        ("benchmarks.digits.data.dataset", "ferd"),
        ("benchmarks.digits.data", "ferd"),
        ("benchmarks.digits.evaluation.attacks", "ferd"),
        ("benchmarks.digits.teacher.training.epochs", "ferd"),
        ("benchmarks.cifar10.distillation.rounds", "ferd"),
        ("methods.no-fae.utae.gamma", "ferd"),
        ("benchmarks.digits.distillation.rounds", None),
        ("methods.ferd.utae.gamma", None),
    ],
)
def test_an_override_of_what_nothing_looks_at_is_refused(key, method):
    with pytest.raises(FerdError, match=rf"^--set {key}=1: not looked at here; these are: benchmarks.digits"):
        override(PARAMS, [f"{key}=1"], looked_at("digits", method))


def test_settings_are_read_as_dvc_reads_them(tmp_path):
    """YAML 1.2: what is no number or word of truth in ``dvc.lock`` is none for us."""
    path = tmp_path / "params.yaml"
    path.write_text("{small: 1e-4, padded: 010, word: no, truth: false}")
    expected = {"small": 0.0001, "padded": 10, "word": "no", "truth": False}
    assert read_content(path) == expected == LOADERS[".yaml"](str(path))
    odd = {"words": ["1e3", "010", "no", "123456789e12", "2026-11-29"], "small": 1e-5, "none": None, "of": {}}
    path.write_text(written(odd))
    assert read_content(path) == odd == LOADERS[".yaml"](str(path))
    path.write_text("{gamma: 0.5, gamma: 0.3}")
    with pytest.raises(FerdError, match=r'params.yaml: line 1: found duplicate key "gamma".*; remove one of'):
        read_content(path)


def test_a_teacher_without_a_method_is_refused(workspace):
    command = ("tasks.validate", "--benchmark", "digits", "--teacher", "given.safetensors")
    done = run_in(workspace, sys.executable, "-m", *command)
    assert (done.returncode, done.stderr) == (
        2,
        "validate: --teacher is who a student is distilled from; give a --method, too\n",
    )
