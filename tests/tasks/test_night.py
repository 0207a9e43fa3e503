"""A night's clone: which night goes on, what it forgets, and that the folder itself stays as it is."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from ferd.errors import FerdError
from tasks import night
from tasks.results.verdict import ENVIRONMENT
from tasks.stage import Stage
from tests.conftest import run_in

TWO = datetime(2026, 11, 25, 2, 0, 0, tzinfo=UTC)
WHAT = {"benchmarks": None, "methods": ["ferd"], "seeds": [0]}
STAGE = {"cmd": "python -m tasks.data", "outs": []}


@pytest.fixture
def here(workspace, monkeypatch):
    """A committed workspace that DVC remembers two stages of."""
    lock = {"schema": "2.0", "stages": dict.fromkeys(("sources", "data@digits", "data@cifar10"), STAGE)}
    (workspace / "dvc.lock").write_text(yaml.safe_dump(lock))
    commit(workspace)
    monkeypatch.chdir(workspace)
    night.NIGHTS.mkdir()
    return workspace


def commit(folder):
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    run_in(folder, "git", "add", "--all")
    done = run_in(folder, "git", *identity, "commit", "--quiet", "--allow-empty", "--message", "tiny")
    assert done.returncode == 0, done.stderr


def begun(now=TWO):
    tonight = night.open_night(WHAT, now)
    tonight.begin(WHAT, ["sources", "data@digits"])
    return tonight


def test_a_night_forgets_its_stages_in_its_clone_alone(here):
    tonight = begun()
    assert tonight.name == "2026-11-25T020000Z"
    kept = yaml.safe_load((tonight.folder / "dvc.lock").read_text())["stages"]
    assert set(kept) == {"sources", "data@cifar10"}  # the lists of code are the commit's
    assert len(yaml.safe_load((here / "dvc.lock").read_text())["stages"]) == 3
    assert run_in(here, "git", "status", "--porcelain", "--untracked-files=no").stdout == ""


def test_a_damaged_note_is_told_and_a_new_night_begins(here, capsys):
    begun()
    note = night.NIGHTS / "2026-11-25T020000Z.json"
    note.write_text(note.read_text()[:-3])
    tomorrow = night.open_night(WHAT, TWO + timedelta(hours=1))
    assert (tomorrow.name, tomorrow.goes_on) == ("2026-11-25T030000Z", False)
    assert capsys.readouterr().out.startswith(".nightly/2026-11-25T020000Z.json")


@pytest.mark.parametrize("name", ["tonight", "2026-11-25T020000"])
def test_a_note_of_no_night_is_told_and_a_new_night_begins(here, capsys, name):
    note = {"commit": "0", "what": WHAT, "kept": False, "finished": False, "published": False}
    (night.NIGHTS / f"{name}.json").write_text(json.dumps(note))
    (night.NIGHTS / name).mkdir()
    assert not night.open_night(WHAT, TWO).goes_on
    said = f".nightly/{name}.json: is not named as a night; that night is over\n"
    assert capsys.readouterr().out == said


def test_a_night_is_kept_also_where_commits_are_to_be_signed(here):
    run_in(here, "git", "config", "commit.gpgsign", "true")
    tonight = begun()
    run_in(tonight.folder, "git", "config", "commit.gpgsign", "true")
    run_in(tonight.folder, "git", "config", "gpg.program", "false")
    tonight.keep(WHAT)
    tonight.publish()
    assert tonight.branch in run_in(here, "git", "branch", "--list", "nightly/*").stdout


def test_a_night_is_kept_whatever_hooks_the_user_has(here):
    tonight = begun()
    hooks = tonight.folder / "hooks"
    hooks.mkdir()
    for name in ("pre-commit", "commit-msg", "pre-push"):
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
    run_in(tonight.folder, "git", "config", "core.hooksPath", str(hooks))
    tonight.keep(WHAT)
    tonight.publish()
    assert tonight.branch in run_in(here, "git", "branch", "--list", "nightly/*").stdout


def test_a_night_that_its_repository_does_not_take_is_kept_in_its_folder(here, capsys):
    run_in(here, "git", "branch", "nightly")
    tonight = begun()
    tonight.keep(WHAT)
    with pytest.raises(FerdError, match=r"^git: .*nightly"):
        tonight.publish()
    tonight.finish(WHAT)
    for days in (1, 2):
        assert not night.open_night(WHAT, TWO + timedelta(days=days)).goes_on
        said = f"night {tonight.name}: its results are in .nightly/{tonight.name} alone; take them"
        assert said in capsys.readouterr().out
    assert f"Night {tonight.name}" in run_in(tonight.folder, "git", "log", "-1", "--format=%s").stdout


def test_what_a_night_has_found_is_not_removed_before_a_branch_has_it(here, capsys):
    """It broke off between its results and its end."""
    tonight = begun()
    tonight.keep(WHAT)
    assert night.open_night(WHAT, TWO + timedelta(hours=1)).goes_on
    assert not night.open_night(WHAT, TWO + timedelta(days=1)).goes_on
    assert f"its results are in .nightly/{tonight.name} alone" in capsys.readouterr().out
    assert f"Night {tonight.name}" in run_in(tonight.folder, "git", "log", "-1", "--format=%s").stdout


def test_one_that_broke_off_goes_on_for_twenty_hours(here):
    tonight = begun()
    (tonight.folder / ".resume").mkdir()
    again = night.open_night(WHAT, TWO + timedelta(hours=19, minutes=59))
    assert (again.name, again.goes_on) == (tonight.name, True)
    assert (again.folder / ".resume").exists()
    tomorrow = night.open_night(WHAT, TWO + timedelta(hours=20))
    assert (tomorrow.name, tomorrow.goes_on) == ("2026-11-25T220000Z", False)
    assert not tonight.folder.exists()


@pytest.mark.parametrize("reason", ["a verdict", "another commit", "other seeds", "no beginning"])
def test_one_that_is_another_or_over_does_not_go_on(here, reason):
    if reason == "no beginning":  # broken while it was cloned
        night.open_night(WHAT, TWO)
    else:
        tonight = begun()
    if reason == "a verdict":
        tonight.finish(WHAT)
    if reason == "another commit":
        commit(here)
    what = WHAT | ({"seeds": [1]} if reason == "other seeds" else {})
    assert not night.open_night(what, TWO + timedelta(minutes=1)).goes_on


def test_a_smaller_night_meanwhile_does_not_cost_one_that_broke_off(here):
    tonight = begun()
    by_hand = night.open_night(WHAT | {"seeds": [1]}, TWO + timedelta(hours=4))
    by_hand.begin(WHAT | {"seeds": [1]}, ["sources"])
    by_hand.keep(WHAT | {"seeds": [1]})
    by_hand.publish()
    by_hand.finish(WHAT | {"seeds": [1]})
    again = night.open_night(WHAT, TWO + timedelta(hours=5))
    assert (again.name, again.goes_on) == (tonight.name, True)
    assert night.open_night(WHAT, TWO + timedelta(hours=20)).name == "2026-11-25T220000Z"
    assert [path.name for path in night.NIGHTS.iterdir()] == ["2026-11-25T220000Z"]


def test_what_is_kept_is_a_branch_of_the_folder(here):
    tonight = begun()
    computed = "results/digits/teacher.json", "sources/tonight.txt", "dvc.lock"
    for name in computed:
        (tonight.folder / name).write_text('{"schema": "tonight"}')
    assert tonight.committed(night.paths.RESULTS / "digits/teacher.json") is None
    tonight.keep(WHAT)
    tonight.publish()
    for name in computed:
        shown = run_in(here, "git", "show", f"nightly/2026-11-25T020000Z:{name}")
        assert shown.stdout == '{"schema": "tonight"}', name
    assert not (here / "results/digits/teacher.json").exists()


def test_in_the_clone_paths_are_those_of_the_folder(here, monkeypatch):
    monkeypatch.setenv("FERD_DATA", "images")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tonight = begun()
    with tonight.entered():
        assert os.getcwd() == str(tonight.folder)
        assert Path("downloads").samefile(here / "downloads")
        assert os.environ["FERD_DATA"] == str(here / "images")
        assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{here}/mlflow.db"
        assert os.environ["FERD_SLOT_FOLDER"] == f"{here}/.resume"
    assert os.getcwd() == str(here)
    assert os.environ["FERD_DATA"] == "images" and "MLFLOW_TRACKING_URI" not in os.environ


def test_what_a_night_sets_is_as_before_when_it_is_left(tmp_path, monkeypatch):
    before = {
        "FERD_DATA": "images",
        "FERD_SLOT_FOLDER": "slots",
        "FERD_SWEEP_ID": "by hand",
        "MLFLOW_TRACKING_URI": "sqlite:///own.db",
    }
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    tonight = night.Night("2026-11-25T020000Z", "0", tmp_path, goes_on=False)
    tonight.folder.mkdir(parents=True)
    with tonight.entered():
        assert {name: os.environ[name] for name in before} == {
            "FERD_DATA": f"{tmp_path}/images",
            "FERD_SLOT_FOLDER": f"{tmp_path}/.resume",
            "FERD_SWEEP_ID": "nightly-2026-11-25T020000Z",
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/own.db",
        }
    assert {name: os.environ[name] for name in before} == before


def test_of_what_changed_the_times_are_left_out(tmp_path, monkeypatch):
    tonight = night.Night("2026-11-25T020000Z", "0", tmp_path, goes_on=False)
    times = [{"path": f"results/digits/teacher.{work}-cost.json"} for work in ("train", "evaluate")]
    answer = {"added": times[:1], "modified": times, "deleted": []}
    monkeypatch.setattr(night, "dvc", lambda *_: json.dumps(answer))
    assert tonight.changed_files() == {}
    answer["modified"].append({"path": "results/digits/teacher.json"})
    assert tonight.changed_files() == {"modified": ["results/digits/teacher.json"]}


def test_the_remote_and_the_cache_are_those_of_the_folder(here):
    run_in(here, "dvc", "remote", "add", "--local", "--default", "storage", "../remote")
    tonight = begun()
    shown = run_in(tonight.folder, "dvc", "remote", "list").stdout.split()
    assert shown[:2] == ["storage", str(here.parent / "remote")]
    assert run_in(tonight.folder, "dvc", "cache", "dir").stdout.strip() == str(here / ".dvc/cache")


def test_one_night_at_a_time(here):
    with (
        night.alone(),
        pytest.raises(FerdError, match="another nightly is running in this folder"),
        night.alone(),
    ):
        pass
    with night.alone():
        pass


@pytest.mark.parametrize(
    ("committed", "said"), [("{}", "lacks 'benchmark'"), ("[]", "must be an object"), (None, None)]
)
def test_a_committed_result_that_is_none_is_named_before_it_is_judged(here, committed, said):
    path = night.paths.RESULTS / "digits/teacher.json"
    if committed:
        path.write_text(committed)
        commit(here)
    tonight = begun()
    if said is None:
        assert night._whole(tonight, path) is None
    else:
        with pytest.raises(FerdError, match=rf"^{path}, as committed in {tonight.commit[:10]}: {said}"):
            night._whole(tonight, path)


def test_a_committed_figure_is_not_compared_with_itself(here):
    tonight = begun()
    evaluated = ("tasks.evaluate", "checkpoints/digits/resnet8-w8/ferd/s0.safetensors")
    planned = [Stage("evaluate-digits@resnet8-w8-ferd-s0", (), True, evaluated, ())]
    with (
        tonight.entered(),
        pytest.raises(FerdError, match=r"^evaluate-digits@resnet8-w8-ferd-s0: was not computed tonight"),
    ):
        night.pairs(tonight, planned)


@pytest.mark.parametrize(("processor", "same"), [("one", True), ("another", False)])
def test_a_result_is_of_the_environment_of_its_teacher_too(tmp_path, monkeypatch, processor, same):
    record = dict.fromkeys(ENVIRONMENT, "one") | {"device": "cpu"}
    costs = {Path(f"{name}-cost.json"): record for name in ("train", "distill", "evaluate")}
    result = Path("results/digits/resnet8-w8/ferd/s0.json")
    evaluated = ("tasks.evaluate", "checkpoints/digits/resnet8-w8/ferd/s0.safetensors")
    train, distill, evaluate = costs
    planned = [
        Stage("teacher", (), True, ("tasks.teacher",), (train,)),
        Stage("distill", ("teacher",), True, ("tasks.distill",), (distill,)),
        Stage("evaluate", ("distill",), True, evaluated, (evaluate, result)),
    ]
    monkeypatch.chdir(tmp_path)
    for path, content in {**costs, train: record | {"processor": processor}, result: {}}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    Path("dvc.lock").write_text(
        yaml.safe_dump({"schema": "2.0", "stages": {"evaluate": STAGE}}), encoding="utf-8"
    )
    monkeypatch.setattr(night.Night, "committed", lambda _, path: costs.get(path))
    tonight = night.Night("2026-11-25T020000Z", "0", tmp_path, goes_on=False)
    assert [pair.same_environment for pair in night.pairs(tonight, planned)] == [same]


def test_a_night_is_delivered_whatever_a_clones_remote_is_called_here(here, tmp_path, monkeypatch):
    settings = tmp_path / "gitconfig"
    settings.write_text("[clone]\n\tdefaultRemoteName = upstream\n", "utf-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    tonight = begun()
    tonight.keep(WHAT)
    tonight.publish()
    assert run_in(here, "git", "branch", "--list", tonight.branch).stdout.strip() == tonight.branch


def test_git_says_itself_why_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(
        FerdError, match=r"git: fatal: not a git repository.*; a nightly compares with what is committed"
    ):
        night.open_night(WHAT, TWO)
