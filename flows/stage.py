"""One stage of dvc.yaml, on whichever machine has a worker free."""

from prefect import flow

from flows.pipeline import TASK_RUNNER, run_stale
from tasks.stage import REPORT, Pipeline


@flow(name="stage", task_runner=TASK_RUNNER)
def stage(name: str) -> None:
    """Bring one stage of dvc.yaml up to date, and before it what it needs.

    Args:
        name: the stage, as `dvc stage list` prints it: `evaluate-digits@resnet8-w8-ferd-s0`.
    """
    planned = Pipeline().plan([name])
    run_stale(name, [known for known in planned if known.name != REPORT or name == REPORT], slots=1)
