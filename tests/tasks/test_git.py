"""Git's answers and refusals."""

import pytest

from ferd.errors import FerdError
from tasks.git import git, git_if_there


def test_what_it_prints(tmp_path):
    git(tmp_path, "init", "--quiet", "--initial-branch", "trunk")
    assert git(tmp_path, "symbolic-ref", "HEAD") == "refs/heads/trunk"


def test_a_refusal_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(FerdError, match=r"^git: fatal: not a git repository.*$"):
        git(tmp_path, "rev-parse", "HEAD")
    assert git_if_there(tmp_path, "rev-parse", "HEAD") is None


def test_a_silent_refusal_is_named_by_what_was_asked(tmp_path):
    git(tmp_path, "init", "--quiet")
    with pytest.raises(FerdError, match=r"^git: config failed$"):
        git(tmp_path, "config", "no.such")


def test_without_git_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FerdError, match=r"^git: No such file or directory$"):
        git(tmp_path, "status")
