"""Git, by its command."""

import os
import subprocess
from pathlib import Path

from ferd.errors import FerdError

BEHIND_RESULTS = ("ferd", "tasks", "sources", "params.yaml", "dvc.yaml")
CHANGED = ("status", "--porcelain", "--untracked-files=no")
ELSEWHERE = {  # variables by which Git would work in another repository than that of the folder
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_COMMON_DIR",
    "GIT_PREFIX",
}


def git(folder: Path, *arguments: str) -> str:
    """What Git prints of the repository that a folder is in.

    Raises:
        FerdError: it is not installed, or refuses; says why.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ELSEWHERE}
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise FerdError(f"git: {error.strerror}") from None
    if answer.returncode:
        raise FerdError(f"git: {' '.join(answer.stderr.split()) or f'{arguments[0]} failed'}")
    return answer.stdout.rstrip()


def git_if_there(folder: Path, *arguments: str) -> str | None:
    """The same; None where it is not installed or refuses."""
    try:
        return git(folder, *arguments)
    except FerdError:
        return None


def head() -> str:
    """The commit that this folder is at; empty outside a Git repository."""
    return git_if_there(Path.cwd(), "rev-parse", "HEAD") or ""


def refuse_uncommitted() -> None:
    """Refuse to share work where what results depend on is not that of the commit.

    Raises:
        FerdError: which files differ from it, or Git cannot say.
    """
    try:
        git(Path.cwd(), "rev-parse", "--verify", "HEAD")
        found = git(Path.cwd(), *CHANGED, "--", *BEHIND_RESULTS)
    except FerdError as error:
        raise FerdError(
            f"{Path.cwd()}: {error}; machines agree by a commit on what they compute: correct that"
        ) from None
    if files := [line.split(maxsplit=1)[1] for line in found.splitlines()]:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        raise FerdError(
            f"{Path.cwd()}: {files[0]}{more} changed since the commit, by which machines agree on what they "
            "compute; commit or stash it"
        )
