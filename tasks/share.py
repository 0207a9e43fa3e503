"""What was computed here, on DVC's remote: ``python -m tasks.share STAGE`` after a run.

Another machine takes it by ``dvc repro --pull STAGE``, without this one's lock file. (``dvc push
--run-cache`` does not do: DVC keeps no run cache of a stage whose results are in Git, not in its cache.)
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ferd.errors import FerdError
from tasks.stage import plain_errors, when_free

NO_REMOTE = "DVC has no remote here; `make remote URL=s3://BUCKET/FOLDER`"


def push(names: Sequence[str]) -> int:
    """Send what these stages, and those that they need, were run with and gave; -> files sent.

    Only of stages that are up to date, and only what the remote does not have.

    Raises:
        FerdError: there is no such stage or no remote, or it does not take them.
    """
    from dvc.repo import Repo

    with plain_errors(), Repo(".", _wait_for_lock=True) as repo:
        when_free(lambda: _save_run_cache(repo, names))
        with _remote_errors():
            return _send(repo)


def require() -> None:
    """Refuse to compute what could not be sent.

    Raises:
        FerdError: there is no remote.
    """
    if not has_remote(Path()):
        raise FerdError(NO_REMOTE)


def has_remote(folder: Path) -> bool:
    """Whether DVC has a remote by default there."""
    from dvc.repo import Repo

    with plain_errors(), Repo(str(folder)) as repo:
        return bool(repo.config["core"].get("remote"))


def _send(repo: Any) -> int:
    sent = 0
    entries = repo.stage_cache.push(None)
    for objects in repo.stage_cache.get_used_objs(entries).values():
        result = repo.cloud.push(objects)
        if result.failed:
            raise FerdError(f"{len(result.failed)} files could not be sent to DVC's remote; run it again")
        sent += len(result.transferred)
    return sent


@contextmanager
def _remote_errors() -> Iterator[None]:
    """What a remote may answer, as one line."""
    from botocore.exceptions import BotoCoreError
    from dvc.stage.cache import RunCacheNotSupported

    try:
        yield
    except RunCacheNotSupported:
        raise FerdError(NO_REMOTE) from None
    except (OSError, BotoCoreError) as error:
        said = getattr(error, "strerror", None) or error
        raise FerdError(f"DVC's remote: {said}; run it again when the remote answers") from None


def _save_run_cache(repo: Any, names: Sequence[str]) -> None:
    with repo.lock:
        stages = {stage.addressing: stage for name in names for stage in repo.stage.collect(name, True)}
        for stage in stages.values():
            if not stage.status():
                repo.stage_cache.save(stage)


def main() -> None:
    """Push, and say how much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("stages", nargs="+", metavar="STAGE")
    try:
        print(f"share: {push(parser.parse_args().stages)} files sent")
    except FerdError as error:
        sys.exit(f"share: {error}")


if __name__ == "__main__":
    main()
