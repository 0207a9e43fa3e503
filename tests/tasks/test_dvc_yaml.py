"""dvc.yaml says what each stage's result depends on: no more, no less."""

import ast
import subprocess
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from ferd.models.registry import build
from tasks import params
from tests.conftest import ROOT, run_in

# Events, paths, settings, names and the record: they carry a result, and do not change it.
PLUMBING = {
    "ferd/__init__.py",
    "ferd/errors.py",
    "ferd/files.py",
    "ferd/models/__init__.py",
    "ferd/models/registry.py",  # network names; literal parameter counts are tested
    "tasks/__init__.py",
    "tasks/params.py",
    "tasks/paths.py",
    "tasks/process.py",
    "tasks/tracking.py",
}


NETWORKS = {f"ferd/models/{name}.py" for name in ("resnet", "preact_resnet", "wide_resnet", "mobilenet_v2")}


def imports_of(path: Path) -> set[str]:
    """Files of this project that a file imports, at any level of nesting."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            file = Path(*name.split(".")).with_suffix(".py")
            if (ROOT / file).exists():
                found.add(str(file))
    return found


def code_behind(entry: str) -> set[str]:
    """The entry and all it imports, but for the plumbing (and what only the plumbing imports)."""
    seen, waiting = set(), [entry]
    while waiting:
        path = waiting.pop()
        if path not in seen and path not in PLUMBING:
            seen.add(path)
            waiting += imports_of(Path(path))
    return seen


@pytest.fixture(scope="module")
def stages():
    with Repo(str(ROOT)) as repo:
        return {stage.addressing: stage for stage in repo.index.stages}


def code_deps(stage) -> set[str]:
    return {dep.def_path for dep in stage.deps if dep.def_path.endswith(".py")}


@pytest.mark.parametrize(
    "name",
    [
        "data@digits",
        "teacher@digits",
        "evaluate-teacher@digits",
        "distill-digits@resnet8-w8-ferd-s0",
        "evaluate-digits@resnet8-w8-ferd-s0",
        "evaluate-cifar10-mini@resnet8-w16-ferd-s0",
        "report",
    ],
)
def test_a_stage_depends_on_exactly_the_code_it_imports(stages, name):
    module = stages[name].cmd.split()[2].replace(".", "/") + ".py"
    assert code_deps(stages[name]) - NETWORKS == code_behind(module) - NETWORKS


@pytest.mark.parametrize("name", ["teacher", "evaluate-teacher", "distill", "evaluate"])
def test_a_stage_depends_on_the_file_of_every_network_of_its_benchmark(stages, name):
    for benchmark, block in params.read(ROOT / "params.yaml").benchmarks.items():
        classes = {build(n, classes=2, channels=1) for n in (block.teacher.network, *block.students)}
        files = {type(network).__module__.replace(".", "/") + ".py" for network in classes}
        own = [s for s in stages if s.startswith((f"{name}@{benchmark}", f"{name}-{benchmark}@"))]
        assert own
        for stage in own:
            assert code_deps(stages[stage]) & NETWORKS == files


def test_no_data_free_student_depends_on_images(stages):
    names = [name for name in stages if name.startswith("distill-") and "real" not in name]
    assert len(names) > 20
    for name in names:
        assert not [dep.def_path for dep in stages[name].deps if dep.def_path.startswith("data/")]


def test_the_teacher_and_the_real_data_control_never_see_test_images(stages):
    for name in ("teacher@digits", "distill-real-digits@resnet8-w8-real-data-s0"):
        images = [dep.def_path for dep in stages[name].deps if dep.def_path.startswith("data/")]
        assert images == ["data/digits/train.safetensors"]


def test_students_and_methods_of_the_grid_are_those_of_params(stages):
    known = params.read(ROOT / "params.yaml")
    for name in stages:
        if name.startswith("evaluate-") and not name.startswith("evaluate-teacher"):
            benchmark, _, rest = name.removeprefix("evaluate-").partition("@")
            student = next(s for s in known.benchmark(benchmark).students if rest.startswith(f"{s}-"))
            known.method(rest.removeprefix(f"{student}-").rpartition("-")[0])


def test_every_student_that_is_evaluated_is_distilled_by_a_method_of_params_yaml(stages):
    known = params.read(ROOT / "params.yaml").methods
    evaluated = [stage for name, stage in stages.items() if name.startswith("evaluate-") and "-s" in name]
    assert len(evaluated) == 28
    distilled = {stage.cmd.removeprefix("python -m tasks.distill ") for stage in stages.values()}
    for stage in evaluated:
        benchmark, student, method, seed = stage.cmd.split("checkpoints/")[1].split(".")[0].split("/")
        assert method in known
        assert f"{benchmark} {student} {method} {seed}" in distilled


def out_of_date(folder: Path) -> set[str]:
    status = run_in(folder, "dvc", "status", "--json")
    assert status.returncode == 0, status.stderr
    return set(yaml.safe_load(status.stdout))


def test_gamma_of_one_method_outdates_its_own_stages_and_the_report(finished_copy, change_params):
    before = out_of_date(finished_copy)
    change_params(finished_copy, 0.25, "methods", "ferd", "utae", "gamma")
    direct = out_of_date(finished_copy) - before
    assert direct == {"distill-digits@resnet8-w8-ferd-s0"}
    repro = run_in(finished_copy, "dvc", "repro", "evaluate-digits@resnet8-w8-ferd-s0")
    assert repro.returncode == 0, repro.stdout
    ran = {line.split("'")[1] for line in repro.stdout.splitlines() if line.startswith("Running stage")}
    assert ran == {"distill-digits@resnet8-w8-ferd-s0", "evaluate-digits@resnet8-w8-ferd-s0"}
    assert out_of_date(finished_copy) - before == {"report"}


def test_dvc_can_read_the_pipeline_without_the_rest_of_the_project(workspace):
    listed = run_in(workspace, "dvc", "stage", "list", "--name-only")
    assert listed.returncode == 0
    assert "distill-digits@resnet8-w8-ferd-s0" in listed.stdout.split()


def test_no_output_is_both_in_git_and_ignored(stages):
    for stage in stages.values():
        for out in stage.outs:
            ignored = subprocess.run(
                ["git", "check-ignore", "--quiet", out.def_path], cwd=ROOT, check=False
            ).returncode
            assert (ignored == 0) == out.use_cache, out.def_path
