"""Which code is behind a result, and what a change to it outdates."""

import hashlib
import shutil

import pytest

from ferd.errors import FerdError
from ferd.models.registry import build
from tasks import sources, stage
from tests.conftest import ROOT, run_in


def test_a_line_is_the_hash_of_the_code_and_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ferd" / "models").mkdir(parents=True)
    (tmp_path / "tasks").mkdir()
    for name in sources.NETWORKS:
        (tmp_path / f"ferd/models/{name}.py").write_text("x = 1\n")
    for name in sources.COMMANDS:
        (tmp_path / f"tasks/{name}.py").write_text("from ferd import errors, losses\n")
    (tmp_path / "ferd" / "losses.py").write_text("import torch\nfrom ferd.models.resnet import x\n")
    (tmp_path / "ferd" / "errors.py").write_text("import ferd.nothing\n")

    def line(path, code):
        return f"{hashlib.sha256(code.encode()).hexdigest()}  {path}\n"

    found = sources.lists()
    assert len(found) == len(sources.COMMANDS) + len(sources.NETWORKS)
    assert found[sources.FOLDER / "distill.txt"] == (  # neither plumbing nor networks
        line("ferd/losses.py", "import torch\nfrom ferd.models.resnet import x\n")
        + line("tasks/distill.py", "from ferd import errors, losses\n")
    )
    assert found[sources.FOLDER / "networks/resnet.txt"] == line("ferd/models/resnet.py", "x = 1\n")
    assert sources.outdated() == set(found)
    (tmp_path / "ferd" / "losses.py").write_text("x = (\n")
    with pytest.raises(FerdError, match=r"^ferd/losses\.py:1: .*correct it"):
        sources.lists()


def test_what_the_method_is_made_of_is_behind_distill_and_its_attacks_behind_evaluate():
    distill, evaluate = (sources.behind(f"tasks/{name}.py") for name in ("distill", "evaluate"))
    assert {"ferd/bottleneck.py", "ferd/losses.py", "ferd/reweighting.py", "ferd/synthesis.py"} <= distill
    assert "ferd/attacks.py" in evaluate
    assert not {"ferd/bottleneck.py", "ferd/synthesis.py", "tasks/distill.py"} & evaluate
    assert not sources.PLUMBING & (distill | evaluate)


def test_plumbing_and_networks_are_files_that_there_are():
    assert all((ROOT / path).is_file() for path in sources.PLUMBING)
    names = ("resnet18", "preact_resnet18", "wrn-16-4", "mobilenet_v2")
    modules = {type(build(name, classes=2, channels=1)).__module__ for name in names}
    assert {f"ferd.models.{name}" for name in sources.NETWORKS} == modules


@pytest.fixture
def here(finished_copy, monkeypatch):
    monkeypatch.chdir(finished_copy)
    return finished_copy


TARGETS = ["evaluate-digits@resnet8-w8-ferd-s0"]


def stale():
    return {item.name for item in stage.Pipeline().plan(TARGETS) if item.stale}


def test_a_comment_outdates_nothing_but_the_lists(here):
    losses = here / "ferd" / "losses.py"
    losses.write_text(losses.read_text() + "# a comment\n")
    assert stale() == {"sources"}
    repro = run_in(here, "dvc", "repro", *TARGETS)
    assert repro.returncode == 0, repro.stderr
    ran = {line.split("'")[1] for line in repro.stdout.splitlines() if line.startswith("Running stage")}
    assert ran == {"sources"}
    assert stale() == set()


def test_changed_code_outdates_what_it_is_behind(here):
    synthesis = here / "ferd" / "synthesis.py"
    synthesis.write_text(synthesis.read_text() + "x = 1\n")
    expected = {"distill-digits@resnet8-w8-ferd-s0", *TARGETS}
    assert stale() == {"sources", *expected}
    lists = run_in(here, "dvc", "repro", "--single-item", "sources")
    assert lists.returncode == 0, lists.stderr
    assert stale() == expected


def test_lists_that_are_gone_are_written_again(here):
    before = {path: path.read_text() for path in (here / "sources").rglob("*.txt")}
    shutil.rmtree(here / "sources")
    repro = run_in(here, "dvc", "repro", *TARGETS)
    assert repro.returncode == 0, repro.stderr
    assert {path: path.read_text() for path in (here / "sources").rglob("*.txt")} == before
    assert stale() == set()
