"""Git's answers and refusals."""

import pytest

from ferd.errors import FerdError
from tasks.git import git, git_if_there, refuse_uncommitted
from tests.conftest import run_in


def test_what_it_prints(tmp_path):
    git(tmp_path, "init", "--quiet", "--initial-branch", "trunk")
    assert git(tmp_path, "symbolic-ref", "HEAD") == "refs/heads/trunk"


def test_a_refusal_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(FerdError, match=r"^git: fatal: not a git repository.*$"):
        git(tmp_path, "rev-parse", "HEAD")
    assert git_if_there(tmp_path, "rev-parse", "HEAD") is None


def test_the_folder_says_which_repository_it_is_about(tmp_path, monkeypatch):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        git(tmp_path / name, "init", "--quiet")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert git(tmp_path / "one", "rev-parse", "--show-toplevel") == str(tmp_path / "one")


def test_a_silent_refusal_is_named_by_what_was_asked(tmp_path):
    git(tmp_path, "init", "--quiet")
    with pytest.raises(FerdError, match=r"^git: config failed$"):
        git(tmp_path, "config", "no.such")


def test_without_git_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FerdError, match=r"^git: No such file or directory$"):
        git(tmp_path, "status")


def test_work_is_shared_of_what_is_committed_alone(workspace, monkeypatch, change_params):
    monkeypatch.chdir(workspace)
    for command in (("add", "--all"), ("commit", "--quiet", "--message", "tiny")):
        done = run_in(workspace, "git", "-c", "user.name=t", "-c", "user.email=t@t", *command)
        assert done.returncode == 0, done.stderr
    (workspace / "notes.txt").write_text("not in Git")
    (workspace / "README.md").write_text("behind no result")
    refuse_uncommitted()
    change_params(workspace, 0.9, "methods", "ferd", "utae", "gamma")
    with pytest.raises(FerdError, match=r": params\.yaml changed since the commit, .*; commit or stash it$"):
        refuse_uncommitted()
    with (workspace / "ferd/losses.py").open("a") as code:
        code.write("OTHER = 1\n")
    with pytest.raises(FerdError, match=r": ferd/losses\.py and 1 more changed"):
        refuse_uncommitted()


def test_where_git_refuses_nothing_passes_for_committed(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(FerdError, match=r"git: fatal: .*; machines agree by a commit"):
        refuse_uncommitted()


def test_a_folder_without_a_commit_has_nothing_to_agree_by(tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FerdError, match=r"git: fatal: .*; machines agree by a commit"):
        refuse_uncommitted()
