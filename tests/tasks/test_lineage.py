"""Which code is behind a result, and what a change to it outdates."""

import hashlib
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from ferd.errors import FerdError
from ferd.models.registry import build
from tasks import dvc_pipeline, lineage, params
from tasks.sources import refuse_undeclared
from tests.conftest import ROOT, run_in

NETWORKS = ("mobilenet_v2", "preact_resnet", "resnet", "wide_resnet")


def test_a_line_is_the_hash_of_the_code_and_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ferd" / "models").mkdir(parents=True)
    (tmp_path / "tasks").mkdir()
    for name in NETWORKS:
        (tmp_path / f"ferd/models/{name}.py").write_text("x = 1\n")
    imports = "".join(f"import ferd.models.{name}\n" for name in ("classifier", *NETWORKS))
    (tmp_path / lineage.REGISTRY).write_text(imports)
    (tmp_path / "ferd/models/classifier.py").write_text("")
    for name in lineage.COMMANDS:
        (tmp_path / f"tasks/{name}.py").write_text("from ferd import errors, losses\n")
    (tmp_path / "ferd" / "losses.py").write_text("import torch\nfrom ferd.models.resnet import x\n")
    (tmp_path / "ferd" / "errors.py").write_text("import ferd.nothing\n")

    def line(path, code):
        return f"{hashlib.sha256(code.encode()).hexdigest()}  {path}\n"

    found = lineage.lists()
    assert len(found) == len(lineage.COMMANDS) + len(NETWORKS)
    assert found[lineage.FOLDER / "distill.txt"] == (  # neither plumbing nor networks
        line("ferd/losses.py", "import torch\nfrom ferd.models.resnet import x\n")
        + line("tasks/distill.py", "from ferd import errors, losses\n")
    )
    assert found[lineage.FOLDER / "networks/resnet.txt"] == line("ferd/models/resnet.py", "x = 1\n")
    assert set(lineage.outdated(found)) == set(found)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("x = (\n", r"^a\.py:1: .*correct it"),
        ("x = 1\nfrom . import losses\n", r"^a\.py:2: a relative import"),
        ("from .losses import x\n", r"^a\.py:1: a relative import"),
        (b"# \xff\n", r"^a\.py:.*correct it"),
        (None, r"^a\.py: cannot be read"),
    ],
)
def test_code_that_cannot_be_followed_is_one_line(tmp_path, monkeypatch, code, fault):
    monkeypatch.chdir(tmp_path)
    if code is not None:
        (tmp_path / "a.py").write_bytes(code if isinstance(code, bytes) else code.encode())
    with pytest.raises(FerdError, match=fault):
        lineage.behind("a.py")


def test_a_package_is_followed_to_its_own_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("import b\n")
    (tmp_path / "b.py").write_text("")
    (tmp_path / "a.py").write_text("from pack import x\n")
    assert lineage.behind("a.py") == {"a.py", "b.py", "pack/__init__.py"}


def test_an_import_is_followed_wherever_and_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pack").mkdir()
    for name in ("b", "c", "pack/d", "pack/e"):
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "a.py").write_text(
        "import os, b\nimport pack.d as d\ndef f():\n    import c\n    from pack import e\n"
    )
    assert lineage.behind("a.py") == {"a.py", "b.py", "c.py", "pack/d.py", "pack/e.py"}


def test_a_stage_is_refused_for_its_own_list_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(
        lineage, "lists", lambda commands: {tmp_path / f"{name}.txt": "" for name in commands}
    )
    (tmp_path / "distill.txt").touch()
    lineage.require("distill")
    with pytest.raises(FerdError, match=r"evaluate\.txt: is of other code .*; `dvc repro --single-item sou"):
        lineage.require("evaluate")


def test_what_the_method_is_made_of_is_behind_distill_and_its_attacks_behind_evaluate():
    distill, evaluate = (lineage.behind(f"tasks/{name}.py") for name in ("distill", "evaluate"))
    assert {"ferd/bottleneck.py", "ferd/losses.py", "ferd/reweighting.py", "ferd/synthesis.py"} <= distill
    assert "ferd/attacks.py" in evaluate
    assert not {"ferd/bottleneck.py", "ferd/synthesis.py", "tasks/distill.py"} & evaluate
    assert not lineage.PLUMBING & (distill | evaluate)


def test_plumbing_and_networks_are_files_that_there_are():
    assert all((ROOT / path).is_file() for path in lineage.PLUMBING)
    names = ("resnet18", "preact_resnet18", "wrn-16-4", "mobilenet_v2")
    modules = {type(build(name, classes=2, channels=1)).__module__ for name in names}
    assert set(lineage.network_files()) == {name.rpartition(".")[2] for name in modules} == set(NETWORKS)


@pytest.fixture
def here(finished_copy, monkeypatch):
    monkeypatch.chdir(finished_copy)
    return finished_copy


TARGETS = ["evaluate-digits@resnet8-w8-ferd-s0"]
CHECKPOINT = "checkpoints/digits/resnet8-w8/ferd/s0.safetensors"


def stale():
    return {item.name for item in dvc_pipeline.Pipeline().plan(TARGETS) if item.stale}


def append(path, line):
    path.write_text(path.read_text() + line)


def ran(folder, *targets):
    """The stages that ``dvc repro`` ran."""
    repro = run_in(folder, "dvc", "repro", *targets)
    assert repro.returncode == 0, repro.stdout + repro.stderr
    return {line.split("'")[1] for line in repro.stdout.splitlines() if line.startswith("Running stage")}


def test_a_comment_outdates_nothing(here):
    append(here / "ferd" / "losses.py", "# a comment\n")
    assert stale() == set()
    assert ran(here, *TARGETS) <= {"sources"}
    assert stale() == set()


def test_changed_code_outdates_what_it_is_behind(here):
    code = (here / "ferd" / "synthesis.py").read_text()
    expected = {"distill-digits@resnet8-w8-ferd-s0", *TARGETS}
    append(here / "ferd" / "synthesis.py", "x = 1\n")
    assert stale() == {"sources", *expected}
    assert ran(here, "sources") == {"sources"}
    assert stale() == expected
    (here / "ferd" / "synthesis.py").write_text(code)  # the lists on disk are now of other code
    assert stale() == {"sources"}
    assert ran(here, *TARGETS) == {"sources"}
    assert stale() == set()


def test_lists_that_the_lock_knows_as_others_are_noted_again(here):
    """As after ``git checkout dvc.lock`` alone: of results the lock would warn for ever."""
    lock = yaml.safe_load((here / "dvc.lock").read_text())
    (of_distill,) = [out for out in lock["stages"]["sources"]["outs"] if out["path"] == "sources/distill.txt"]
    of_distill["md5"] = 32 * "0"
    (here / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert stale() == {"sources"}
    assert ran(here, "--single-item", "sources") == {"sources"}
    assert stale() == set()


def test_lists_that_are_gone_are_written_again(here):
    before = {path: path.read_text() for path in (here / "sources").rglob("*.txt")}
    shutil.rmtree(here / "sources")
    assert stale() == {"sources"}
    assert ran(here, *TARGETS) == {"sources"}
    assert {path: path.read_text() for path in (here / "sources").rglob("*.txt")} == before


def test_dvc_runs_no_stage_by_other_code_than_it_records(here):
    append(here / "ferd" / "synthesis.py", "x = 1\n")
    (here / CHECKPOINT).unlink()
    repro = run_in(here, "dvc", "repro", "--single-item", "distill-digits@resnet8-w8-ferd-s0")
    assert repro.returncode != 0
    assert "sources/distill.txt: is of other code than what is here" in repro.stdout + repro.stderr
    by_hand = run_in(here, sys.executable, "-m", "tasks.distill", "digits", "resnet8-w8", "ferd", "s0")
    assert by_hand.returncode == 0, by_hand.stderr


def test_the_lists_in_git_are_of_the_code_in_git(monkeypatch):
    monkeypatch.chdir(ROOT)
    again = "run `dvc repro --single-item sources`, and commit what it writes"
    assert lineage.outdated(lineage.lists()) == [], again


def test_a_file_of_networks_that_no_stage_can_depend_on_is_refused(tmp_path):
    pipeline = tmp_path / "dvc.yaml"
    pipeline.write_text("stages: {sources: {outs: [{sources/networks/resnet.txt: {cache: false}}, a.txt]}}")
    resnet, mine = (lineage.OF_NETWORKS / f"{name}.txt" for name in ("resnet", "mine"))
    refuse_undeclared([resnet, Path("a.txt")], pipeline)
    with pytest.raises(FerdError, match=r"no output sources/networks/mine\.txt, .* add `- sources/networks/"):
        refuse_undeclared([resnet, mine], pipeline)


@pytest.mark.parametrize(
    ("command", "networks"),
    [
        ("tasks.teacher cifar10-small", {"wide_resnet"}),
        ("tasks.judge cifar10-small", {"resnet"}),
        ("tasks.distill cifar10-small mobilenet_v2 ferd s0", {"wide_resnet", "mobilenet_v2"}),
        ("tasks.evaluate checkpoints/cifar10-small/teacher.safetensors", {"wide_resnet"}),
        ("tasks.evaluate checkpoints/cifar10-small/mobilenet_v2/ferd/s0.safetensors", {"mobilenet_v2"}),
        (
            "tasks.analyse checkpoints/cifar10-small/mobilenet_v2/ferd/s0.safetensors",
            {"mobilenet_v2", "resnet", "wide_resnet"},
        ),
        ("tasks.analyse checkpoints/cifar10-small/teacher.safetensors", {"wide_resnet"}),
        ("tasks.distill nothing mobilenet_v2 ferd s0", set()),
        ("tasks.distill cifar10-small nobody ferd s0", {"wide_resnet"}),
        ("tasks.data cifar10-small", set()),
        ("tasks.report", set()),
    ],
)
def test_the_lists_of_networks_are_those_of_what_a_command_builds_or_loads(command, networks):
    found = lineage.network_lists(command.split(), params.read(ROOT / "params.yaml").benchmarks)
    assert found == {lineage.OF_NETWORKS / f"{name}.txt" for name in networks}
