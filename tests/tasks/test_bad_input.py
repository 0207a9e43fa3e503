"""Bad input ends a stage with one line saying what, where and what to do; outputs stay."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ferd.checkpoint import save_classifier
from ferd.models.registry import build
from tasks import distill
from tests.conftest import copy_workspace, run_in

TEACHER = Path("checkpoints/digits/teacher.safetensors")
STUDENT = Path("checkpoints/digits/resnet8-w8/ferd/s0.safetensors")


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    target = tmp_path_factory.mktemp("bad") / "workspace"
    copy_workspace(finished, target)
    return target


@pytest.fixture(autouse=True)
def restored(folder):
    """Each test breaks something; params.yaml and the checkpoints come back."""
    kept = {name: (folder / name).read_bytes() for name in ("params.yaml", TEACHER, STUDENT)}
    yield
    for name, content in kept.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture
def distil(folder, monkeypatch, capsys):
    """The student's stage, run in this process, which is to fail; -> how, and what it said."""

    def run() -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        monkeypatch.setattr(sys, "argv", ["distill", "digits", "resnet8-w8", "ferd", "s0"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            distill.main()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(sys.argv, ended.value.code, *capsys.readouterr())

    return run


def assert_one_line(failed: subprocess.CompletedProcess[str], *words: str) -> None:
    lines = failed.stderr.strip().splitlines()
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert len(lines) == 1, failed.stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("methods", "ferd", "utae", "gama"), 0.5, ["params.yaml: methods.ferd.utae.gama", "unknown key"]),
        (("methods", "ferd", "utae", "gamma"), -0.1, ["methods.ferd.utae.gamma", "-0.1"]),
        (("methods", "ferd", "sampler"), "yes please", ["methods.ferd.sampler", "yes please"]),
        (("benchmarks", "digits", "threat_model", "epsilon"), 1.5, ["threat_model.epsilon", "1.5"]),
        (("benchmarks", "digits", "students"), ["resnet9"], ["resnet9", "resnet18"]),
        (("benchmarks", "digits", "analysis", "judge", "network"), "resnet9", ["resnet9", "resnet18"]),
        (("benchmarks", "digits", "distillation", "rounds"), "many", ["distillation.rounds", "many"]),
        (
            ("benchmarks", "digits", "distillation", "proportion_floor"),
            0.2,
            ["benchmarks.digits.distillation.proportion_floor: 0.2", "1/10"],
        ),
        (
            ("benchmarks", "digits", "evaluation", "attacks"),
            {"clean": "all", "pgd20": 15},
            ["benchmarks.digits.evaluation.attacks: 15 images", "multiple of 10"],
        ),
    ],
)
def test_a_fault_in_params_names_its_key(folder, distil, change_params, keys, value, words):
    change_params(folder, value, *keys)
    before = (folder / STUDENT).read_bytes()
    assert_one_line(distil(), *words)
    assert (folder / STUDENT).read_bytes() == before


def test_an_unknown_student_or_method_lists_those_there_are(folder):
    unknown = run_in(folder, sys.executable, "-m", "tasks.distill", "digits", "resnet9", "ferd", "s0")
    assert_one_line(unknown, "resnet9", "resnet18")
    unknown = run_in(folder, sys.executable, "-m", "tasks.distill", "digits", "resnet8-w8", "fred", "s0")
    assert_one_line(unknown, "fred", "no-utae")


def test_a_checkpoint_that_is_not_there_is_named_with_what_makes_it_if_anything_does(folder):
    def evaluate(of):
        return run_in(folder, sys.executable, "-m", "tasks.evaluate", f"checkpoints/digits/{of}.safetensors")

    assert_one_line(evaluate("judge"), "judge.safetensors: neither a teacher's nor a student's checkpoint")
    made_by = "python -m tasks.distill digits resnet8-w8 ferd s7"
    assert_one_line(evaluate("resnet8-w8/ferd/s7"), "s7.safetensors: missing", made_by)
    assert_one_line(evaluate("resnet8-w8/fred/s0"), "'fred' is unknown", "no-utae")
    teacher = (folder / TEACHER).rename(folder / "elsewhere")
    assert_one_line(evaluate("teacher"), f"{TEACHER}: missing", "python -m tasks.teacher digits")
    teacher.rename(folder / TEACHER)


def test_a_flow_refuses_a_name_that_is_unknown_before_it_begins(folder):
    for option, name in (("--methods", "fred"), ("--benchmark", "digts")):
        refused = run_in(folder, sys.executable, "-m", "flows.reproduce", option, name)
        assert refused.returncode == 2 and refused.stdout == ""
        assert refused.stderr.startswith("reproduce: ") and refused.stderr.count("\n") == 1
        assert f"'{name}' is unknown; choose from" in refused.stderr


def test_a_cut_off_teacher_is_refused(folder, distil):
    whole = (folder / TEACHER).read_bytes()
    (folder / TEACHER).unlink()
    (folder / TEACHER).write_bytes(whole[: len(whole) // 2])
    assert_one_line(distil(), str(TEACHER), "cut off")


def test_a_foreign_teacher_is_refused(folder, distil):
    (folder / TEACHER).unlink()
    save_file({"weight": torch.zeros(3)}, folder / TEACHER)
    assert_one_line(distil(), str(TEACHER), "another program")


def test_a_teacher_of_other_classes_is_refused(folder, distil):
    (folder / TEACHER).unlink()
    save_classifier(
        folder / TEACHER,
        build("resnet8-w16", classes=7, channels=1),
        "resnet8-w16",
        benchmark="digits",
    )
    assert_one_line(distil(), str(TEACHER), "classes", "7", "10")


def test_a_missing_teacher_says_what_to_run(folder, distil):
    (folder / TEACHER).unlink()
    assert_one_line(distil(), str(TEACHER), "run")


def test_a_missing_data_folder_is_named(folder):
    missing = run_in(folder, sys.executable, "-m", "tasks.data", "cifar10-mini", FERD_DATA="/nowhere")
    assert_one_line(missing, "/nowhere/cifar-10-batches-py")


def test_without_ferd_data_the_variable_is_named(folder):
    unset = run_in(folder, sys.executable, "-m", "tasks.data", "cifar10-mini", FERD_DATA="")
    assert_one_line(unset, "FERD_DATA")


def test_a_results_folder_that_cannot_be_written_leaves_the_result(folder):
    result = folder / "results/digits/resnet8-w8/no-fae"
    result.write_text("in the way")
    broken = run_in(folder, sys.executable, "-m", "tasks.distill", "digits", "resnet8-w8", "no-fae", "s0")
    assert_one_line(broken, "results/digits/resnet8-w8/no-fae", "move away what is in its place")
    assert result.read_text() == "in the way"
    assert not list(folder.rglob("*.part-*"))
    result.unlink()


def test_a_diverging_student_is_reported_and_the_last_one_kept(folder, distil, change_params):
    change_params(folder, 1.0e30, "benchmarks", "digits", "distillation", "student", "learning_rate")
    before = (folder / STUDENT).read_bytes()
    assert_one_line(distil(), "loss", "learning_rate")
    assert (folder / STUDENT).read_bytes() == before


def test_an_mlflow_store_that_cannot_be_reached_is_named(folder):
    command = [sys.executable, "-m", "tasks.distill", "digits", "resnet8-w8", "no-fae", "s0"]
    broken = run_in(folder, *command, MLFLOW_TRACKING_URI="sqlite:////dev/null/mlflow.db")
    assert_one_line(broken, "sqlite:////dev/null/mlflow.db", "MLFLOW_TRACKING_URI")
