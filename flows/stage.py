"""One stage of dvc.yaml, on whichever machine has a worker free."""

from prefect import flow

from ferd.errors import FerdError
from flows.pipeline import TASK_RUNNER, run_stale, tried_again
from tasks import share as remote
from tasks.dvc_pipeline import Pipeline
from tasks.git import head, refuse_uncommitted


@flow(name="stage", task_runner=TASK_RUNNER)
def stage(name: str, share: bool = False, commit: str | None = None) -> None:
    """Bring one stage of dvc.yaml up to date, and before it what it needs.

    How many stages compute at a time is the worker's limit of flow runs.

    Args:
        name: the stage, as `dvc stage list` prints it: `evaluate-digits@resnet8-w8-ferd-s0`.
        share: take from DVC's remote what another machine computed, and send there what this one computes.
        commit: refuse to run where the clone is at another one, or has changes.
    """
    if commit is not None:
        if commit != (own := head()):
            raise FerdError(
                f"the worker's clone is at commit {own[:10]}, {commit[:10]} is asked for; there, `git fetch "
                f"&& git checkout --force {commit[:10]}` (what it computed for grids is on the remote)"
            )
        refuse_uncommitted()
    if share:
        require_remote()
    run_stale(name, Pipeline().plan([name]), slots=None, pull=share)
    if share:
        push(name)


@tried_again()
def require_remote() -> None:
    """A remote that takes files, before anything is computed."""
    remote.require()


@tried_again()
def push(name: str) -> None:
    """What the stage, and those that it needs, were run with and gave, to DVC's remote."""
    remote.push([name])
