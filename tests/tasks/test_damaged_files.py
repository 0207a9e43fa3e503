"""A file that is damaged, and a fault that is typed: each command says which and what to do, in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ferd.errors import FerdError
from tasks import (
    analyse,
    analysis_table,
    browse,
    distill,
    evaluate,
    params,
    plan,
    record,
    report,
    table,
    validate,
)
from tasks.dvc_pipeline import module_of
from tasks.job import job_of
from tasks.results import tidy
from tasks.stage import Stage
from tests.conftest import ROOT, tiny_params
from tests.tasks.results.test_stored import write_result
from tests.tasks.results.test_stored_sweeps import write as write_sweep
from tests.tasks.test_analysis_table import an_analysis, write_analyses

RESULT = Path("results/digits/resnet8-w8/ferd/s0.json")
ROUNDS, COST, ANALYSIS = (
    RESULT.with_suffix(s) for s in (".rounds.jsonl", ".distill-cost.json", ".analysis.json")
)
SWEEP = Path("results/sweeps/digits-0a1b2c3d.json")
TEACHER = "checkpoints/digits/teacher.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of every kind."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copy(ROOT / "params.yaml", folder)
        write_result(folder, "teacher", 0, 0.95, student=None)
        write_result(folder, "ferd", 0, 0.5)
        COST.write_text(json.dumps({"device": "cpu", "threads": 1, "seconds": 1.0}))
        write_analyses("digits", [an_analysis()])
        write_sweep(folder, SWEEP.stem)
    return folder


@pytest.fixture
def here(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, to be damaged."""
    folder = tmp_path / "here"
    shutil.copytree(whole, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refusal(command, *arguments)``: the one line that it ends with."""

    def run(command: Any, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["command", *arguments])
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def without(*keys: str) -> Callable[[Path], None]:
    """Take away a key of an object in a file."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        block = content
        for key in keys[:-1]:
            block = block[key]
        del block[keys[-1]]
        path.write_text(json.dumps(content), encoding="utf-8")

    return damage


def only_schema(path: Path) -> None:
    path.write_text(
        json.dumps({"schema": json.loads(path.read_text(encoding="utf-8"))["schema"]}), encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("path", "damage", "fault"),
    [
        (ROUNDS, Path.unlink, "no such file; run its distill stage"),
        (ROUNDS, cut, "line 2: cut off or damaged"),
        (ROUNDS, lambda path: path.write_text(""), "empty"),
        (COST, cut, "cut off or damaged"),
        (COST, without("device"), "lacks 'device'"),
        (RESULT, cut, "cut off or damaged"),
        (RESULT, without("seed"), "lacks 'seed'"),
        (RESULT, without("attacks", "pgd20", "worst"), "attacks: pgd20: lacks 'worst'"),
        (ANALYSIS, only_schema, "lacks 'student'"),
        (ANALYSIS, without("images", "agreement"), "images: lacks 'agreement'"),
        (SWEEP, only_schema, "lacks 'sweep_id'"),
        (SWEEP, without("points", 1, "result", "seed"), "points[1]: result: lacks 'seed'"),
    ],
)
def test_the_report_names_the_damaged_file_and_what_to_do(here, refusal, path, damage, fault):
    damage(path)
    said = refusal(report)
    assert said.startswith(f"report: {path}") and fault in said and " run " in said
    assert not report.PAGE.exists()


@pytest.mark.parametrize("command", [table, record])
@pytest.mark.parametrize(("path", "damage"), [(RESULT, cut), (RESULT, without("seed"))])
def test_other_commands_name_a_damaged_result_too(here, refusal, command, path, damage):
    damage(path)
    assert f"{path}: " in refusal(command, "digits")


def test_the_table_names_damaged_rounds(here, refusal):
    cut(ROUNDS)
    assert f"{ROUNDS}, line 2: cut off" in refusal(table, "digits")


def test_an_analysis_is_refused_by_its_own_table(here, refusal):
    only_schema(ANALYSIS)
    assert f"analysis table: {ANALYSIS}: lacks 'student'" in refusal(analysis_table, "digits")


def test_the_plan_names_a_damaged_cost(here):
    cut(COST)
    planned = plan.Planned(job_of(["tasks.distill", "digits", "resnet8-w8", "ferd", "s0"]), stale=False)
    costs = plan.Costs("digits", params.validate(tiny_params()), plan.torch.device("cpu"))
    with pytest.raises(FerdError, match=rf"{COST}: cut off .*; delete the file and run the stage"):
        plan.compared([planned], costs, costs.device)


def test_the_plan_passes_over_a_stage_of_another_program():
    mine = Stage("mine", (), stale=True, command=module_of("./mine.sh"), uncached=())
    assert plan.planned_jobs([mine]) == []


def test_the_plan_in_a_folder_that_cannot_be_written_is_one_line(here, refusal, monkeypatch):
    def read_only() -> None:
        raise OSError(30, "Read-only file system", "/x/.dvc/tmp")

    monkeypatch.setattr(plan, "Pipeline", read_only)
    assert "'/x/.dvc/tmp'; DVC must be able to write" in refusal(plan, "digits")


@pytest.mark.parametrize("command", [evaluate, analyse])
@pytest.mark.parametrize(
    "place",
    ["nope", "checkpoints", f"/elsewhere/{TEACHER}", "checkpoints/digits/resnet8-w8/ferd/x.safetensors"],
)
def test_what_is_no_checkpoints_place_is_refused_with_what_is(here, refusal, command, place):
    assert f"{place}: no checkpoint's place; from the project's root folder, give " in refusal(command, place)


def test_an_unknown_benchmark_has_no_table(here, refusal):
    assert refusal(table, "nope").startswith("table: benchmark 'nope' is unknown; choose from digits")


def test_a_benchmark_without_results_has_one_line(here, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["table", "cifar100"])
    table.main()
    assert capsys.readouterr().out == "cifar100: no results yet\n"


def test_a_port_that_there_is_not_is_refused(here, refusal, handlers):
    assert refusal(browse, "--port", "99999") == "browse: --port 99999: must be from 1 to 65535"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("# \xe9".encode("latin-1"), "not valid YAML in UTF-8"),
        (b"benchmarks: [", "not valid YAML"),
        (b"methods:\n  ferd: {utae: {gamma: 0.5,\n    gamma: 0.3}}", 'line 3: found duplicate key "gamma"'),
        (b"a: b: c", "not valid YAML"),
        (b"a: 2026-13-45", "not valid YAML"),
        (None, "cannot be read: Is a directory"),
    ],
)
@pytest.mark.parametrize("command", [(table, "digits"), (validate, "--benchmark", "digits")])
def test_settings_that_cannot_be_read_are_one_line(here, refusal, content, fault, command):
    Path("params.yaml").unlink()
    if content is None:
        Path("params.yaml").mkdir()
    else:
        Path("params.yaml").write_bytes(content)
    assert f"params.yaml: {fault}" in refusal(*command)


@pytest.mark.parametrize("command", [(table, "digits"), (validate, "--benchmark", "digits")])
def test_a_key_that_is_a_list_is_refused(here, refusal, command):
    Path("params.yaml").write_text("? [a, b]\n: 1", "utf-8")
    assert "the key ('a', 'b') is not text; put it in quotes" in refusal(*command)


@pytest.mark.parametrize("command", [(table, "digits"), (validate, "--benchmark", "digits")])
def test_another_folder_has_no_settings(tmp_path, monkeypatch, refusal, command):
    monkeypatch.chdir(tmp_path)
    assert "params.yaml: not found; run from the project's root folder" in refusal(*command)


@pytest.mark.parametrize(("kind", "key"), [("benchmarks", 1), ("methods", True)])
def test_a_name_that_is_no_text_is_refused(kind, key):
    content = tiny_params()
    content[kind][key] = next(iter(content[kind].values()))
    with pytest.raises(FerdError, match=rf"^{kind}: the key {key} is not text; put it in quotes"):
        params.validate(content)


@pytest.mark.parametrize(("kind", "name"), [("benchmarks", "mine.v2"), ("methods", "a b"), ("methods", "")])
def test_a_name_that_dvc_would_take_apart_is_refused(kind, name):
    content = tiny_params()
    content[kind][name] = next(iter(content[kind].values()))
    with pytest.raises(FerdError, match=rf"^params\.yaml: {kind}: {name!r} is no name: "):
        params.require_plain_names(params.validate(content))


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        (
            "methods.ferd.sampler.x=1",
            "methods.ferd.sampler.x: unknown key; methods.ferd.sampler is no block of keys",
        ),
        ("nope.x=1", "--set nope.x=1: not looked at here; these are: benchmarks.digits.augmentation, "),
        ("methods.ferd.sampler=[", "--set methods.ferd.sampler=[: '[' is not valid YAML"),
        (
            "methods.ferd.sampler=2026-13-45",
            "--set methods.ferd.sampler=2026-13-45: '2026-13-45' is not valid YAML",
        ),
    ],
)
def test_an_override_that_cannot_be_made_is_one_line(here, refusal, override, fault):
    said = refusal(validate, "--benchmark", "digits", "--method", "ferd", "--set", override)
    assert said.startswith(f"validate: {fault}")


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        *((distill, f"digits w8 ferd {text}", f"argument seed: {text!r} is no seed; write s0, s1, ...")
          for text in ("s-1", "sss1", "sx", "1")),
        (validate, "--benchmark digits --seeds 0 -1",
         "argument --seeds: '-1' is no seed; give whole numbers, 0 or more"),
    ],
)  # fmt: skip
def test_what_is_no_seed_is_refused(monkeypatch, capsys, command, arguments, said):
    monkeypatch.setattr("sys.argv", ["command", *arguments.split()])
    with pytest.raises(SystemExit):
        command.main()
    assert capsys.readouterr().err.splitlines()[-1] == f"command: error: {said}"


def test_without_the_method_ferd_no_gamma_is_compared_and_the_report_is_made(here, monkeypatch):
    content = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    del content["methods"]["ferd"]
    Path("params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert tidy.gammas(params.read().methods) == {}
    monkeypatch.setattr("sys.argv", ["report"])
    report.main()
    assert report.PAGE.exists()
