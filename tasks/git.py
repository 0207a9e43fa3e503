"""Git, by its command."""

import subprocess
from pathlib import Path

from ferd.errors import FerdError


def git(folder: Path, *arguments: str) -> str:
    """What Git prints in a folder.

    Raises:
        FerdError: it is not installed, or refuses; says why.
    """
    try:
        answer = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
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
