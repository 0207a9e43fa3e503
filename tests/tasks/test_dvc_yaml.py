"""dvc.yaml says what each stage's result depends on: no more, no less."""

import re
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from dvc.repo import Repo
from dvc.utils.serialize import modify_yaml

from ferd.config import Benchmark
from ferd.models.classifier import Classifier
from ferd.models.registry import build
from tasks import lineage, params
from tests.conftest import ROOT, run_in


@pytest.fixture(scope="module")
def stages():
    with Repo(str(ROOT)) as repo:
        return {stage.addressing: stage for stage in repo.index.stages}


def lists_of(stage) -> set[str]:
    return {dep.def_path for dep in stage.deps if dep.def_path.startswith("sources/")}


def test_the_lists_of_code_are_the_outputs_of_one_stage(stages):
    written = {Path(out.def_path) for out in stages["sources"].outs}
    assert written == set(lineage.lists())
    assert {dep.def_path for dep in stages["sources"].deps} == {"ferd", "tasks"}


def test_a_stage_depends_on_the_list_of_its_command(stages):
    for stage in stages.values():
        name = stage.cmd.split()[2].removeprefix("tasks.")
        if name != lineage.STAGE:
            assert f"sources/{name}.txt" in lists_of(stage), stage.addressing


def networks_of(command: list[str], benchmark: Benchmark) -> set[str]:
    """The networks that a stage builds or loads."""
    teacher, judge = benchmark.teacher.network, benchmark.analysis.judge.network
    if command[0] in ("tasks.teacher", "tasks.judge"):
        return {teacher if command[0] == "tasks.teacher" else judge}
    if command[0] == "tasks.distill":
        return {teacher, *benchmark.students}
    if command[1].endswith("teacher.safetensors"):
        return {teacher}
    return {*benchmark.students} | ({teacher, judge} if command[0] == "tasks.analyse" else set())


def test_a_stage_depends_on_the_list_of_every_network_of_its_benchmark(stages):
    known = params.read(ROOT / "params.yaml").benchmarks
    seen = set()
    for stage in stages.values():
        _, _, *command = stage.cmd.split()
        if command[0] in ("tasks.sources", "tasks.data", "tasks.report"):
            continue
        name = command[1].split("/")[1] if "/" in command[1] else command[1]
        classes = {type(network(n)) for n in networks_of(command, known[name])}
        lists = {f"sources/networks/{kind.__module__.split('.')[-1]}.txt" for kind in classes}
        own = f"sources/{command[0].removeprefix('tasks.')}.txt"
        assert lists_of(stage) == {own, *lists}, stage.addressing
        assert lineage.network_lists(command, known) <= {Path(path) for path in lists}, stage.addressing
        seen.add((command[0], name))
    assert len(seen) > 4 * len(known)


def test_the_settings_that_a_command_is_guarded_by_are_those_of_its_stages(stages):
    named = defaultdict(set)
    for stage in stages.values():
        command = stage.cmd.split()[2].removeprefix("tasks.")
        keys = {key for dep in stage.deps for key in getattr(dep, "params", ())}
        named[command] |= {re.sub(r"^benchmarks\.[^.]+\.|(?<=^methods)\..+", "", key) for key in keys}
    assert named.pop("report") == {"benchmarks", "methods"}
    assert named.pop("sources") == set()
    named["distill"].remove("methods")
    assert named == {command: set(keys) for command, keys in params.USED.items()}


@cache
def network(name: str) -> Classifier:
    with torch.device("meta"):
        return build(name, classes=2, channels=1)


def test_no_data_free_student_depends_on_images(stages):
    names = [name for name in stages if name.startswith("distill-") and "real" not in name]
    assert len(names) > 200
    for name in names:
        assert not [dep.def_path for dep in stages[name].deps if dep.def_path.startswith("data/")]


def test_the_teacher_and_the_real_data_control_never_see_test_images(stages):
    for name in ("teacher@digits", "distill-real-digits@resnet8-w8-real-data-s0"):
        images = {dep.def_path for dep in stages[name].deps if dep.def_path.startswith("data/")}
        assert "data/digits/train.safetensors" in images
        assert "data/digits/test.safetensors" not in images


def test_the_grid_is_made_of_students_and_methods_of_params(stages):
    known = params.read(ROOT / "params.yaml")
    for stage in stages.values():
        _, _, module, *arguments = stage.cmd.split()
        if module == "tasks.distill":
            benchmark, student, method, _ = arguments
            assert student in known.benchmark(benchmark).students
            known.method(method)


def test_every_method_of_params_is_somewhere_in_the_grid(stages):
    used = {stage.cmd.split()[5] for stage in stages.values() if "tasks.distill" in stage.cmd}
    assert used == set(params.read(ROOT / "params.yaml").methods)


def test_what_is_evaluated_is_what_is_distilled(stages):
    distilled = {
        f"checkpoints/{'/'.join(stage.cmd.split()[3:])}.safetensors"
        for stage in stages.values()
        if "tasks.distill" in stage.cmd
    }
    evaluated = [stage.cmd.split()[3] for stage in stages.values() if "tasks.evaluate" in stage.cmd]
    students = [path for path in evaluated if not path.endswith("teacher.safetensors")]
    assert len(students) == len(set(students)) > 200
    assert set(students) == distilled


def test_a_replayed_pool_is_that_of_the_same_student_and_seed(stages):
    known = params.read(ROOT / "params.yaml").methods
    replays = [stage for name, stage in stages.items() if name.startswith("distill-on-")]
    assert len(replays) > 10
    for stage in replays:
        benchmark, student, method, seed = stage.cmd.split()[3:]
        (pool,) = [dep.def_path for dep in stage.deps if dep.def_path.endswith(".pool")]
        assert pool == f"checkpoints/{benchmark}/{student}/{known[method].pool_of}/{seed}.pool"


def out_of_date(folder: Path) -> set[str]:
    status = run_in(folder, "dvc", "status", "--json")
    assert status.returncode == 0, status.stderr
    return set(yaml.safe_load(status.stdout))


def test_gamma_of_one_method_outdates_its_own_stages_and_the_report(finished_copy, change_params):
    before = out_of_date(finished_copy)
    change_params(finished_copy, 0.25, "methods", "ferd", "utae", "gamma")
    direct = out_of_date(finished_copy) - before
    assert direct == {"distill-digits@resnet8-w8-ferd-s0", "report"}
    repro = run_in(finished_copy, "dvc", "repro", "evaluate-digits@resnet8-w8-ferd-s0")
    assert repro.returncode == 0, repro.stdout
    ran = {line.split("'")[1] for line in repro.stdout.splitlines() if line.startswith("Running stage")}
    assert ran - {"sources"} == {"distill-digits@resnet8-w8-ferd-s0", "evaluate-digits@resnet8-w8-ferd-s0"}
    assert out_of_date(finished_copy) - before == {"report"}


def test_dvc_can_read_the_pipeline_without_the_rest_of_the_project(workspace):
    listed = run_in(workspace, "dvc", "stage", "list", "--name-only")
    assert listed.returncode == 0
    assert "distill-digits@resnet8-w8-ferd-s0" in listed.stdout.split()


def test_no_output_is_both_in_git_and_ignored(stages):
    outs = {out.def_path: out.use_cache for stage in stages.values() for out in stage.outs}
    answer = subprocess.run(
        ["git", "check-ignore", "--stdin"],
        cwd=ROOT,
        input="\n".join(outs),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert set(answer.stdout.splitlines()) == {path for path, cached in outs.items() if cached}


def test_what_the_report_depends_on_is_in_git(stages):
    """DVC fails where a folder is missing, and Git keeps none that is empty."""
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    files = kept.stdout.splitlines()
    for dep in stages["report"].deps:
        assert any(file == dep.def_path or file.startswith(f"{dep.def_path}/") for file in files), dep


def test_an_experiment_changes_its_own_line_of_the_settings_alone(tmp_path):
    """``dvc exp run -S`` writes params.yaml anew, by this function."""
    path = tmp_path / "params.yaml"
    before = (ROOT / "params.yaml").read_text()
    path.write_text(before)
    with modify_yaml(str(path)) as content:
        content["methods"]["ferd"]["utae"]["gamma"] = 0.3
    pairs = list(zip(before.splitlines(), path.read_text().splitlines(), strict=True))
    changed = [pair for pair in pairs if pair[0] != pair[1]]
    assert changed == [("    utae: {gamma: 0.5, model: student}", "    utae: {gamma: 0.3, model: student}")]
