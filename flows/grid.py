"""A benchmark by several machines: every stage a run of the deployment ``stage``, on any free worker.

python -m flows.grid --benchmark digits
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect import State, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import WorkerStatus
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling

from ferd.errors import FerdError
from flows.pipeline import (
    RETRIES,
    TASK_RUNNER,
    as_command,
    evaluations,
    failures_of,
    in_order,
    require_known,
    run_stale,
)
from tasks import lineage, share
from tasks.command import command_line
from tasks.dvc_pipeline import Pipeline
from tasks.git import head, refuse_uncommitted
from tasks.stage import Stage, stoppable, stopped
from tasks.table import print_table

DEPLOYMENT = "stage/stage"
POLL_SECONDS = 2
SERVER_FAULT = 500
T = TypeVar("T")


@flow(name="grid", task_runner=TASK_RUNNER)
def grid(
    benchmark: str = "digits", methods: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> None:
    """Have workers bring a benchmark's students up to date, then take their results from DVC's remote.

    A stage is asked for when all that it needs has been sent to the remote, what is up to date here first,
    and once: no worker does what another has done. What workers do at a time is their own limit. Where
    stages fail, the results of the others are taken all the same.

    Args:
        benchmark: a benchmark of params.yaml.
        methods: names of params.yaml; by default all that dvc.yaml has for the benchmark.
        seeds: by default all that dvc.yaml has.

    Raises:
        FerdError: there is no remote, or stages failed: says which, and why.
    """
    share.require()
    refuse_uncommitted()
    say_whether_a_worker_is_there()
    pipeline = Pipeline()
    targets = evaluations(pipeline, benchmark, methods, seeds)
    stale = [stage for stage in pipeline.plan(targets) if stage.stale]
    send_what_is_here(stale)
    print(f"{benchmark}: {len(stale)} stages for the workers", flush=True)
    submit: Any = on_a_worker.submit  # its overloads do not take wait_for with typed arguments
    commit = head()
    with stoppable():
        ended = in_order(stale, lambda stage, needed: submit(stage.name, commit, wait_for=needed))
    # a worker in this folder has changed its dvc.lock, which a pipeline reads once
    whole = [name for name in targets if name not in ended or ended[name].is_completed()]
    if whole:
        run_stale(benchmark, Pipeline().plan(whole, report=True), slots=1, pull=True, began=time.time())
    if failures := failures_of(ended):
        raise FerdError("; ".join(failures))


def send_what_is_here(stale: Sequence[Stage]) -> None:
    """What these stages need and is up to date in this folder, to DVC's remote, where workers find it."""
    asked = {stage.name for stage in stale}
    here = {need for stage in stale for need in stage.upstream} - asked - {lineage.STAGE}
    if here:
        share.push(sorted(here))


def say_whether_a_worker_is_there() -> None:
    """A line where nobody takes what is asked for; it waits until somebody does.

    Raises:
        FerdError: the server has no such deployment.
    """
    with get_client(sync_client=True) as client:
        try:
            pool = client.read_deployment_by_name(DEPLOYMENT).work_pool_name
        except ObjectNotFound:
            raise FerdError(
                f"no deployment {DEPLOYMENT} on this server; `python -m infra.stack deploy`"
            ) from None
        assert pool is not None
        workers = client.read_workers_for_work_pool(pool)
    if not any(worker.status == WorkerStatus.ONLINE for worker in workers):
        print(f"no worker of the pool {pool} is online; the stages wait for one", flush=True)


@task(task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def on_a_worker(name: str, commit: str) -> None:
    """Ask for a stage, and wait until a worker has run it and sent what came of it.

    Where its machine or its worker was lost it is asked for again, and goes on at its last round. When the
    grid is stopped, so is the stage, on its worker.

    Raises:
        FerdError: the deployment's run failed.
    """
    context = FlowRunContext.get()
    asked_by = context.flow_run.id if context and context.flow_run else ""
    for attempt in range(1 + RETRIES):
        state = _end_of(_asked(name, commit, f"{asked_by}/{name}/{attempt}"), name)
        if not state.is_crashed():
            break
    if not state.is_completed():
        raise FerdError(f"{state.type.value.lower()} on a worker: {state.message or 'see its log'}")


def _asked(name: str, commit: str, key: str) -> UUID:
    """Ask for a stage, once a ``key``, as soon as the server answers; -> the flow run.

    Raises:
        FerdError: the grid is stopped before it does.
    """
    run: Any = None
    while not run:
        run = _answer(
            lambda: run_deployment(
                DEPLOYMENT,
                parameters={"name": name, "share": True, "commit": commit},
                flow_run_name=name,
                timeout=0,  # it is waited for by ``_end_of``
                idempotency_key=key,
            )
        )
        if not run and stopped.wait(POLL_SECONDS):
            raise FerdError(f"{name}: not asked for: the grid was stopped")
    return UUID(str(run.id))


def _end_of(run: UUID, name: str) -> State[Any]:
    """The state that a flow run ends in, or in which it was cancelled since the grid is stopped."""
    answered = True
    with get_client(sync_client=True) as client:
        while not (state := _answer(lambda: client.read_flow_run(run).state)) or not state.is_final():
            if answered != bool(state):
                answered = bool(state)
                said = "answers again" if answered else "does not answer; the worker and the asking go on"
                print(f"{name}: the server {said}", flush=True)
            if stopped.wait(POLL_SECONDS):
                client.set_flow_run_state(run, Cancelling())
                return Cancelling(message="the grid was stopped")
    return state


def _answer(ask: Callable[[], T]) -> T | None:
    """The server's answer; None while it gives none: a worker goes on meanwhile."""
    try:
        return ask()
    except httpx.HTTPStatusError as error:
        if error.response.status_code < SERVER_FAULT:
            raise
    except httpx.HTTPError:
        pass
    return None


def main() -> None:
    """Parse the command line, run the flow, print the table."""
    parser = command_line(__doc__)
    parser.add_argument("--benchmark", default="digits")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+")
    args = parser.parse_args()
    with as_command("grid"):
        if not PREFECT_API_URL.value():
            raise FerdError(
                "workers and this command need one server; set PREFECT_API_URL to its address (make up)"
            )
        require_known(args.benchmark, args.methods)
        grid(args.benchmark, args.methods, args.seeds)
        print_table(args.benchmark, args.methods, args.seeds)


if __name__ == "__main__":
    main()
