"""What was computed here, on DVC's remote: ``python -m tasks.share STAGE`` after a run.

Another machine takes it by ``dvc repro --pull STAGE``, without this one's lock file. (``dvc push
--run-cache`` does not do: DVC keeps no run cache of a stage whose results are in Git, not in its cache.)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from ferd.errors import FerdError, Unreachable
from tasks.command import as_command, command_line
from tasks.dvc_pipeline import plain_errors, when_free

Entry = tuple[str, str]  # of DVC's run cache: the hash of what a stage was run with, and with what it gave
NO_REMOTE = "DVC has no remote here; `make remote URL=s3://BUCKET/FOLDER`"


def push(names: Sequence[str]) -> int:
    """Send what these stages, and those that they need, were run with and gave; -> files sent.

    Of those that they need only what is up to date here, and only files that the remote does not have.

    Raises:
        FerdError: there is no such stage or no remote, a stage is not up to date, or the remote does not take
            them; ``Unreachable`` where it does not answer.
    """
    from dvc.repo import Repo

    with plain_errors(), Repo(".", _wait_for_lock=True) as repo:
        entries = when_free(lambda: _save_run_cache(repo, names))
        with _remote_errors():
            _probe(repo)  # of many files that fail DVC says only how many
            return _send(repo, entries)


def require() -> None:
    """Refuse to compute what could not be sent: a file is written to the remote, and removed.

    Raises:
        FerdError: there is no remote, or it does not take files; ``Unreachable`` where it does not answer.
    """
    from dvc.repo import Repo

    with plain_errors(), Repo(".") as repo, _remote_errors():
        _probe(repo)


def has_remote(folder: Path) -> bool:
    """Whether DVC has a remote by default there."""
    from dvc.repo import Repo

    with plain_errors(), Repo(str(folder)) as repo:
        return bool(repo.config["core"].get("remote"))


def _probe(repo: Any) -> None:
    remote = repo.cloud.get_remote_odb(None, "push", hash_name="md5-dos2unix")
    probe = remote.fs.join(remote.path, f"probe-{uuid4().hex}")
    remote.fs.makedirs(remote.path)
    remote.fs.pipe_file(probe, b"")
    remote.fs.remove(probe)


def _send(repo: Any, entries: Sequence[Entry]) -> int:
    """Files first, then the run cache's entries, which say that there are such files.

    Not by DVC's ``stage_cache.push``: that sends the entries of everything that was ever run here, and
    passes over those that the remote does not take. Nor by its ``cloud.push``: where the remote has the list
    of a folder's files it takes all of these to be there. So each file is asked for.
    """
    from dvc.fs import generic

    remote = repo.cloud.get_remote_odb(None, "push", hash_name="md5-dos2unix")
    files, here = repo.cloud.get_remote_odb(None, "push"), repo.cache.local
    sent = 0
    for objects in repo.stage_cache.get_used_objs(entries).values():
        result = repo.cloud.transfer(here, files, objects, cache_odb=here, shallow=False)
        if result.failed:
            raise Unreachable(f"{len(result.failed)} files could not be sent to DVC's remote; run it again")
        sent += len(result.transferred)
    local = repo.cache.legacy
    for key, value in entries:
        place = ("runs", key[:2], key, value)
        generic.copy(
            local.fs, local.fs.join(local.path, *place), remote.fs, remote.fs.join(remote.path, *place)
        )
    return sent


@contextmanager
def _remote_errors() -> Iterator[None]:
    """What a remote may answer, as one line."""
    from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError
    from dvc.config import RemoteConfigError

    try:
        yield
    except RemoteConfigError:
        raise FerdError(NO_REMOTE) from None
    except (NoCredentialsError, PartialCredentialsError, ValueError) as error:  # the last: of an address
        reason = " ".join(str(error).split())
        raise FerdError(f"DVC's remote: {reason}; correct the AWS_* variables") from None
    except PermissionError as error:
        raise FerdError(
            f"DVC's remote: {error.strerror or error}; correct its permissions, or AWS_*"
        ) from None
    except (FileNotFoundError, NotADirectoryError) as error:  # a bucket's, too
        where = f" {error.filename}" if error.filename else ""
        raise FerdError(
            f"DVC's remote{where}: {error.strerror or error}; `dvc remote list` shows its address: "
            "correct it, or make the bucket"
        ) from None
    except (OSError, BotoCoreError) as error:
        said = getattr(error, "strerror", None) or error
        raise Unreachable(f"DVC's remote: {said}; run it again when the remote answers") from None


def _save_run_cache(repo: Any, names: Sequence[str]) -> list[Entry]:
    """The entries of what is up to date; of other stages than those named the rest is passed over."""
    from dvc.stage.cache import _can_hash, _get_cache_hash, _get_stage_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    entries = []
    with repo.lock:
        asked = {stage.addressing for name in names for stage in repo.stage.collect(name)}  # a group's, too
        stages = {stage.addressing: stage for name in names for stage in repo.stage.collect(name, True)}
        for name, stage in stages.items():
            if not stage.status():
                repo.stage_cache.save(stage)
                if _can_hash(stage):
                    entries.append((_get_stage_hash(stage), _get_cache_hash(to_single_stage_lockfile(stage))))
            elif name in asked:
                raise FerdError(f"{name}: is not up to date, nothing was sent; `dvc repro {name}`")
    return entries


def main() -> None:
    """Push, and say how much."""
    parser = command_line(__doc__)
    parser.add_argument("stages", nargs="+", metavar="STAGE")
    stages = parser.parse_args().stages
    with as_command("share"):
        print(f"share: {push(stages)} files sent")


if __name__ == "__main__":
    main()
