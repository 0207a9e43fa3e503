"""A night: the last commit in a clone of its own, below ``.nightly/``, where it is computed from scratch.

The folder that nightlies are started in keeps its files as they are. The clone shares its DVC cache and
remote; of what a night computes anew, DVC forgets there what was committed, so that it runs. Resume files
are in the clone too, and so answer for their own night alone. What came out is kept as a branch
``nightly/<name>`` of the folder's own Git repository.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ferd.errors import FerdError
from ferd.files import atomic_write, check_fields, read_json, write_json
from tasks import lineage, paths, share, slots, tracking
from tasks.git import git, git_if_there
from tasks.locks import held
from tasks.params import written
from tasks.results.remembered import LOCK, locked_stages
from tasks.results.stored import FIELDS, check_figures
from tasks.results.verdict import Pair, same_environment
from tasks.stage import Stage

NIGHTS = Path(".nightly")
NAME = "%Y-%m-%dT%H%M%SZ"  # of a night: when it began
LASTS = timedelta(hours=20)  # a night that broke off is gone on with for so long; then it is yesterday's
AS_NIGHTLY = ("-c", "user.name=nightly", "-c", "user.email=nightly@localhost", "-c", "commit.gpgsign=false")
ALL_FILES = ("-c", f"core.excludesFile={os.devnull}")  # also those that this user ignores in every repository


@dataclass(frozen=True)
class Night:
    """A night's clone; ``home`` is the folder that it is a clone of, ``goes_on`` whether it broke off."""

    name: str
    commit: str
    home: Path
    goes_on: bool

    @property
    def folder(self) -> Path:
        """Where tonight is computed."""
        return self.home / NIGHTS / self.name

    @property
    def branch(self) -> str:
        """Where the results are kept."""
        return f"nightly/{self.name}"

    @property
    def sweep_id(self) -> str:
        """The tag of tonight's runs in MLflow."""
        return f"nightly-{self.name}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Work in the clone, with the record, the images and the slots of the folder that it is of."""
        own = {
            "MLFLOW_TRACKING_URI": _absolute_store(self.home),
            "FERD_SWEEP_ID": self.sweep_id,
            slots.FOLDER: str(self.home / paths.RESUME),
        }
        if images := os.environ.get("FERD_DATA"):
            own["FERD_DATA"] = str(self.home / images)
        before = {key: os.environ.get(key) for key in own}
        os.environ.update(own)
        try:
            with chdir(self.folder):
                yield
        finally:
            for key, value in before.items():
                os.environ.pop(key)
                os.environ.update({key: value} if value is not None else {})

    def push(self, stages: Sequence[str]) -> None:
        """What these stages made tonight; nothing without a remote. Run in the night's folder."""
        if share.has_remote(self.folder):
            share.push(stages)

    def begin(self, what: Mapping[str, Any], stages: Sequence[str]) -> None:
        """Forget what was committed of these stages, and from now on go on where this breaks off.

        Not the lists of code, which are the commit's.
        """
        locked = locked_stages(self.folder / LOCK)
        forgotten = set(stages) - {lineage.STAGE}
        kept = {name: stage for name, stage in locked.items() if name not in forgotten}
        with atomic_write(self.folder / LOCK) as part:
            part.write_text(written({"schema": "2.0", "stages": kept}), "utf-8")
        self._note(what)

    def committed(self, path: Path) -> Any:
        """A JSON file as it was committed; None where it was not.

        Raises:
            FerdError: it is not JSON.
        """
        shown = git_if_there(self.folder, "show", f"{self.commit}:{path}")
        if shown is None:
            return None
        try:
            return json.loads(shown)
        except ValueError:
            raise FerdError(f"{path}: as committed in {self.commit[:10]}, it is not JSON") from None

    def keep(self, what: Mapping[str, Any]) -> None:
        """Commit results and what they are of; from now on the clone stays until a branch has them."""
        git(self.folder, *ALL_FILES, "add", "--", "results", str(lineage.FOLDER), str(LOCK))
        message = ("--message", f"Night {self.name}")
        git(self.folder, *AS_NIGHTLY, "commit", "--quiet", "--no-verify", "--allow-empty", *message)
        self._note(what, kept=True)

    def publish(self) -> None:
        """What is kept becomes the branch ``nightly/<name>`` of the folder's repository.

        Raises:
            FerdError: that repository does not take it, by a hook or since it has a branch ``nightly``.
        """
        git(self.folder, "push", "--quiet", "--no-verify", "origin", f"HEAD:refs/heads/{self.branch}")

    def changed_files(self) -> dict[str, list[str]]:
        """Files that DVC finds ``added``, ``modified`` or ``deleted`` by what was kept; not the times."""
        answer = json.loads(dvc(self.folder, "diff", "--json", self.commit, "HEAD") or "{}")
        changed = {
            kind: [entry["path"] for entry in answer.get(kind, []) if not entry["path"].endswith(paths.COST)]
            for kind in ("added", "modified", "deleted")
        }
        return {kind: found for kind, found in changed.items() if found}

    def finish(self, what: Mapping[str, Any]) -> None:
        """There is a verdict: the next night begins anew, and removes this clone if its branch is there."""
        self._note(what, kept=True, finished=True)

    def _note(self, what: Mapping[str, Any], *, kept: bool = False, finished: bool = False) -> None:
        branch = git_if_there(self.home, "rev-parse", "--verify", f"refs/heads/{self.branch}")
        told = {"kept": kept, "finished": finished, "published": branch is not None}
        note = {"commit": self.commit, "what": what, **told}
        write_json(self.home / NIGHTS / f"{self.name}.json", note)


@contextmanager
def alone() -> Iterator[None]:
    """One night at a time in a folder.

    Raises:
        FerdError: there is another.
    """
    NIGHTS.mkdir(exist_ok=True)
    refusal = "another nightly is running in this folder; wait for it, or stop it"
    with held(NIGHTS / "lock", refusal=refusal):
        yield


def open_night(what: Mapping[str, Any], now: datetime) -> Night:
    """The night that broke off, if it was to compute the same, of the same commit; else a new one.

    Raises:
        FerdError: this is no Git repository with a commit, or it cannot be cloned.
    """
    home = Path.cwd()
    try:
        commit = git(home, "rev-parse", "--verify", "HEAD")
    except FerdError as error:
        raise FerdError(
            f"{home}: {error}; a nightly compares with what is committed: mend it, or commit something first"
        ) from None
    notes = _notes()
    broken_off = _broken_off(notes, now)
    for name, note in broken_off.items():
        if (note.get("commit"), note.get("what")) == (commit, what):
            return Night(name, commit, home, goes_on=True)
    night = Night(now.astimezone(UTC).strftime(NAME), commit, home, goes_on=False)
    _remove_all_but({*broken_off, *_unpublished(notes)})
    _clone(night)
    return night


def pairs(night: Night, planned: Sequence[Stage]) -> list[Pair]:
    """Each result of the planned stages, as it was committed and as it is now; run in the night's folder.

    Raises:
        FerdError: a result was not computed tonight, or a committed file is no such file.
    """
    stages = {stage.name: stage for stage in planned}
    computed = locked_stages(LOCK)

    def costs(name: str) -> dict[Path, None]:
        """The cost records of a stage and of all that it needs."""
        found = {path: None for path in stages[name].uncached if path.name.endswith(paths.COST)}
        for need in stages[name].upstream:
            found |= costs(need)
        return found

    found = []
    for stage in planned:
        module, *arguments = stage.command
        if module == "tasks.evaluate":
            if stage.name not in computed:
                raise FerdError(f"{stage.name}: was not computed tonight; run the nightly again")
            result, records = paths.result_of(Path(arguments[0])), list(costs(stage.name))
            committed = [night.committed(path) for path in records]
            same = same_environment(committed, [read_json(path) for path in records])
            found.append(Pair(_whole(night, result), read_json(result), same))
    return found


def _whole(night: Night, path: Path) -> dict[str, Any] | None:
    """A result as it was committed; None where it was not."""
    result: dict[str, Any] | None = night.committed(path)
    if result is not None:
        where = f"{path}, as committed in {night.commit[:10]}"
        check_fields(result, FIELDS, where, "commit that")
        check_figures(result, where, "commit that")
    return result


def dvc(folder: Path, *arguments: str) -> str:
    """Run DVC in a folder; -> what it prints.

    Raises:
        FerdError: with its last line.
    """
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("ERROR")]
        raise FerdError(f"dvc {arguments[0]}: {(lines or [f'exit status {done.returncode}'])[-1]}")
    return done.stdout


def _clone(night: Night) -> None:
    """A fresh clone with the DVC cache, the remote and the downloads of the folder."""
    git(night.home, "clone", "--quiet", "--origin", "origin", str(night.home), str(night.folder))
    git(night.folder, "checkout", "--quiet", "--detach", night.commit)
    (night.home / "downloads").mkdir(exist_ok=True)
    (night.folder / "downloads").symlink_to(night.home / "downloads")
    from dvc.repo import Repo

    with (
        Repo(str(night.home)) as here,
        Repo(str(night.folder)) as there,
        there.config.edit("local") as local,
    ):
        # DVC writes ASCII alone, which this folder's name need not be, and turns it into a path from there.
        local["cache"] = {"dir": os.path.relpath(here.cache.local_cache_dir)}
        if remote := here.config["core"].get("remote"):
            local["core"] = {"remote": remote}
            local["remote"] = {remote: dict(here.config["remote"][remote])}


def _broken_off(notes: Mapping[str, dict[str, Any]], now: datetime) -> dict[str, dict[str, Any]]:
    """Of the nights that may go on."""
    return {name: note for name, note in notes.items() if not note["finished"] and now - _began(name) < LASTS}


def _unpublished(notes: Mapping[str, dict[str, Any]]) -> list[str]:
    """Nights whose results are in their clone alone; says so."""
    names = [name for name, note in notes.items() if note["kept"] and not note["published"]]
    for name in names:
        folder = NIGHTS / name
        print(f"night {name}: its results are in {folder} alone; take them, then delete it", flush=True)
    return names


def _notes() -> dict[str, dict[str, Any]]:
    """What the nights whose clones are there wrote of themselves, by name, the last first."""
    found = {}
    for path in sorted(NIGHTS.glob("*.json"), reverse=True):
        try:
            note = read_json(path, {"kept": bool, "finished": bool, "published": bool})
            _began(path.stem)
        except (FerdError, ValueError) as error:  # the second: of the name
            reason = error if isinstance(error, FerdError) else f"{path}: is not named as a night"
            print(f"{reason}; that night is over", flush=True)
            continue
        if path.with_suffix("").exists():
            found[path.stem] = note
    return found


def _began(name: str) -> datetime:
    return datetime.strptime(name, NAME).replace(tzinfo=UTC)


def _remove_all_but(names: Collection[str]) -> None:
    """Clones and notes of other nights."""
    for path in NIGHTS.iterdir():
        if path.is_dir() and path.name not in names:
            shutil.rmtree(path)
        elif path.suffix == ".json" and path.stem not in names:
            path.unlink()


def _absolute_store(home: Path) -> str:
    """The folder's MLflow store, from wherever it is used."""
    store = tracking.store()
    scheme, separator, path = store.partition(":///")
    return f"{scheme}{separator}{home / path}" if scheme == "sqlite" and separator else store
