"""One stage of dvc.yaml, on whichever machine has a worker free."""

from prefect import flow

from flows.pipeline import TASK_RUNNER, run_stale, transfer
from tasks import share as remote
from tasks.stage import Pipeline


@flow(name="stage", task_runner=TASK_RUNNER)
def stage(name: str, share: bool = False) -> None:
    """Bring one stage of dvc.yaml up to date, and before it what it needs.

    Args:
        name: the stage, as `dvc stage list` prints it: `evaluate-digits@resnet8-w8-ferd-s0`.
        share: take from DVC's remote what another machine computed, and send there what this one computes.
    """
    if share:
        remote.require()
    run_stale(name, Pipeline().plan([name]), slots=1, pull=share)
    if share:
        push(name)


@transfer
def push(name: str) -> None:
    """What the stage, and those that it needs, were run with and gave, to DVC's remote."""
    remote.push([name])
