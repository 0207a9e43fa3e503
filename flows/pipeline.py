"""Stages of ``dvc.yaml`` as Prefect tasks: what every flow of this project shares."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, TypeVar

import httpx
from prefect import State, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.runtime import task_run
from prefect.task_runners import ThreadPoolTaskRunner

from ferd.errors import FerdError, Unreachable
from flows.gpus import Gpus, machine
from flows.progress import LiveView
from tasks import command, params, tracking
from tasks.dvc_pipeline import BUSY_POLL_SECONDS, MOST_POLL_SECONDS, Pipeline
from tasks.slots import SLOTS
from tasks.stage import Stage, StageBusy, StageFailed, not_run, run, stoppable, stopped

TASK_RUNNER: Any = ThreadPoolTaskRunner(max_workers=1024)  # threads wait; the slots say how many compute
RETRY_DELAYS_SECONDS = [10.0, 120.0]  # a server restarts; a network comes back
RETRIES = len(RETRY_DELAYS_SECONDS)
OnEvent = Callable[[dict[str, Any]], None]
T = TypeVar("T")


class Session:
    """What the stages of one flow run share: the view, and how many may run.

    ``slots`` of them compute at a time (``tasks.slots``), spread over the machine's GPUs; as many more
    start up meanwhile. Without, whoever runs the flow says how many: a worker, by its limit. With ``pull``
    they take what DVC's remote has; ``anew``, not even its run cache's.
    """

    def __init__(self, view: LiveView, slots: int | None, *, pull: bool = False, anew: bool = False) -> None:
        self.view, self.pull, self.anew = view, pull, anew
        self.slots = slots
        self.gpus = Gpus()
        self._rooms = threading.Semaphore(slots or 1)

    @contextmanager
    def room(self) -> Iterator[Callable[[OnEvent], OnEvent]]:
        """Room to start up in, for as many processes as compute at a time; free again when this one computes.

        Without slots, which it would wait for, it is free when the stage has ended: one at a time computes.
        Gives what a process's events must pass through.
        """
        self._rooms.acquire()
        with ExitStack() as rented:
            rented.callback(self._rooms.release)

            def watched(on_event: OnEvent) -> OnEvent:
                def watch(event: dict[str, Any]) -> None:
                    if event["event"] == "computing" and self.slots:
                        rented.close()  # once: then there is nothing left to give back
                    on_event(event)

                return watch

            yield watched


def worth_a_retry(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Whether another attempt may succeed: a stage's own message says that it will not."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, Unreachable) or (isinstance(error, StageFailed) and error.retryable)


def pause() -> None:
    """Wait where an earlier attempt at the task has failed.

    Raises:
        StageFailed: all was stopped meanwhile.
    """
    failed = task_run.run_count - 1
    if failed > 0 and stopped.wait(RETRY_DELAYS_SECONDS[failed - 1]):
        raise not_run(task_run.name)


def tried_again(**options: Any) -> Callable[[Callable[..., T]], Any]:
    """Makes a task of which another attempt follows, after a pause, where one may succeed.

    The pause is this one's, not Prefect's, in which nothing would hear of a stop.
    """
    make_task: Any = task  # its overloads do not take options by name

    def decorate(work: Callable[..., T]) -> Any:
        @wraps(work)
        def attempted(*args: Any, **named: Any) -> T:
            pause()  # in a function of its own: Ray sends this one away, which must not hold the event
            return work(*args, **named)

        return make_task(
            attempted,
            retries=RETRIES,
            retry_condition_fn=worth_a_retry,
            cache_policy=NO_CACHE,  # DVC alone decides what is out of date, and of a sweep its folder
            persist_result=False,
            **options,
        )

    return decorate


@tried_again(task_run_name="{stage.name}")
def run_stage(stage: Stage, session: Session) -> None:
    """Run one stage when there is a place for it."""
    environment = prefect_run() | ({SLOTS: str(session.slots)} if session.slots else {})
    with session.room() as watched, session.gpus.one() as gpu:
        options: Any = {"environment": environment | gpu, "pull": session.pull, "anew": session.anew}
        attempt(stage.name, session, lambda on_event: run(stage, watched(on_event), **options))


def prefect_run() -> dict[str, str]:
    """What ties a run of MLflow to the flow that asked for it."""
    context = FlowRunContext.get()
    return {"FERD_PREFECT_RUN": str(context.flow_run.id)} if context and context.flow_run else {}


def attempt(name: str, session: Session, work: Callable[[OnEvent], None]) -> None:
    """Do a task's work, and show what becomes of it.

    Raises:
        StageFailed: the work failed, or the flow was stopped before it began.
        FerdError, OSError: it failed by something that no other attempt mends.
    """
    get_run_logger().info("start")
    try:
        work_when_free(name, session, work)
    except StageFailed as error:
        error.retryable = error.retryable and not stopped.is_set()
        if error.retryable and task_run.run_count <= RETRIES:
            session.view.paused(name)
            session.view.say(f"{error}; trying again")
        else:
            session.view.finished(name, "stopped" if stopped.is_set() else f"failed: {error}")
        raise
    except (FerdError, OSError) as error:
        session.view.finished(name, f"failed: {error}")
        raise
    session.view.finished(name)


def work_when_free(name: str, session: Session, work: Callable[[OnEvent], None]) -> None:
    """Do the work; while another flow of this folder has its files, say so, wait and try again."""
    pause = 0.0
    while not stopped.is_set():
        try:
            return work(partial(session.view.on_event, name))
        except StageBusy as error:
            if not pause:
                session.view.say(f"{name}: waiting for another process of this folder ({error.reason})")
            pause = min(2 * pause or BUSY_POLL_SECONDS, MOST_POLL_SECONDS)
            stopped.wait(pause)
    raise not_run(name)


def create_record() -> None:
    """Begin to create MLflow's tables, in a process of its own, while Prefect starts.

    Raises:
        FerdError: this folder has no settings that are valid; nothing is made in it.
    """
    params.read()
    if tracking.store() == tracking.DEFAULT_STORE and not tracking.DEFAULT_FILE.exists():
        quiet = subprocess.DEVNULL  # a stage that cannot use the store says so itself
        create = [sys.executable, "-m", "tasks.tracking"]
        subprocess.Popen(create, stdout=quiet, stderr=quiet, start_new_session=True)  # Ctrl-C spares it


def require_known(benchmark: str, methods: Sequence[str] | None) -> None:
    """Refuse names that params.yaml lacks, before Prefect is started.

    Raises:
        FerdError: says which, and what there is.
    """
    settings = params.read()
    settings.benchmark(benchmark)
    for method in methods or ():
        settings.method(method)


@contextmanager
def as_command(name: str) -> Iterator[None]:
    """Run a flow as a person's command: a fault or Ctrl-C ends it with one line.

    After SIGTERM, and when its terminal is closed, it is left by ``sys.exit``: then Prefect's own server
    ends, and what stages had removed is put back.
    """

    def end(number: int, _frame: Any) -> None:
        print(f"{name}: {command.GOES_ON}", file=sys.stderr)
        sys.exit(128 + number)

    command.end_by(end)
    with command.as_command(name, command.GOES_ON):
        try:
            yield
        except RuntimeError as error:
            if "Failed to reach API" not in str(error):
                raise
            raise FerdError(f"{_server()} does not answer; correct PREFECT_API_URL, or make up") from None
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.UNAUTHORIZED:
                raise
            raise FerdError(
                f"{_server()} asks for another name and password; set PREFECT_API_AUTH_STRING to those of "
                "its `.stack/environment.sh`"
            ) from None


def _server() -> str:
    return command.without_password(os.environ.get("PREFECT_API_URL", "Prefect's server"))


def bring_up_to_date(
    benchmark: str,
    methods: Sequence[str] | None,
    seeds: Sequence[int] | None,
    slots: int,
    *,
    analyse: bool = False,
) -> None:
    """Run what is out of date among a benchmark's teacher, students and results, and the report.

    Args:
        analyse: also what ``tasks.analyse`` looks at, for those of the students that dvc.yaml has it for.

    Raises:
        FerdError: the settings are at fault, or stages failed: says which, and why.
    """
    check_slots(slots)
    params.read().benchmark(benchmark)
    pipeline = Pipeline()
    targets = evaluations(pipeline, benchmark, methods, seeds)
    if analyse:
        targets += pipeline.analyses_of(targets)
    run_stale(benchmark, pipeline.plan(targets, report=True), slots)


def check_slots(slots: int) -> None:
    """Refuse a number of stages that would never compute anything."""
    if slots < 1:
        raise FerdError(f"slots: {slots}; at least one stage must compute at a time")


def evaluations(
    pipeline: Pipeline, benchmark: str, methods: Sequence[str] | None, seeds: Sequence[int] | None
) -> list[str]:
    """The stages whose outputs are a benchmark's results: the teacher's first."""
    return [f"evaluate-teacher@{benchmark}", *pipeline.student_stages(benchmark, methods, seeds)]


def run_stale(
    title: str,
    stages: Sequence[Stage],
    slots: int | None,
    *,
    pull: bool = False,
    anew: bool = False,
    began: float | None = None,
) -> None:
    """Run those of the planned stages that are out of date, and say how the time was spent.

    Each runs after those it needs. One whose inputs failed is not run; all others are.

    Args:
        slots: how many compute at a time; None where a worker's limit says it.
        pull: take their outputs from DVC's remote where another machine has computed the same.
        anew: compute them, even where DVC's run cache has the outputs of the same inputs.
        began: since when the time counts, a ``time.time()``; default: the start of this process.

    Raises:
        FerdError: stages failed: says which, and why.
    """
    stale = sum(stage.stale for stage in stages)
    if not stale:
        print(f"{title}: all {len(stages)} stages are up to date; nothing to run")
        return
    at_a_time = f", {slots} at a time" if slots else ""
    print(f"{title}: {stale} of {len(stages)} stages to run{at_a_time}, on {machine()}", flush=True)
    submit: Any = run_stage.submit  # its overloads do not take wait_for with typed arguments
    with LiveView(stale, began) as view, stoppable():
        session = Session(view, slots, pull=pull, anew=anew)
        ended = in_order(
            [stage for stage in stages if stage.stale],
            lambda stage, needed: submit(stage, session, wait_for=needed),
        )
        failures = failures_of(ended)
    print(
        f"{view.wall_seconds:.0f} s in all, of which orchestration (no stage was computing) "
        f"{view.orchestration_seconds:.0f} s"
    )
    if failures:
        raise FerdError("; ".join(failures))


def in_order(
    stages: Sequence[Stage], submit: Callable[[Stage, list[PrefectFuture[Any]]], PrefectFuture[Any]]
) -> dict[str, State[Any]]:
    """Submit each stage with the futures of those that it needs, and wait; -> how each ended."""
    futures: dict[str, PrefectFuture[Any]] = {}
    for stage in stages:
        futures[stage.name] = submit(stage, [futures[name] for name in stage.upstream if name in futures])
    for future in futures.values():
        future.wait()
    return {name: future.state for name, future in futures.items()}


def failures_of(states: Mapping[str, State[Any]]) -> list[str]:
    """What failed, a line each; or, where nothing did, what was not run all the same."""
    failed = {
        name: state.result(raise_on_failure=False) for name, state in states.items() if state.is_failed()
    }
    if failed:
        return [
            str(error) if isinstance(error, StageFailed) else f"{name}: {str(error) or type(error).__name__}"
            for name, error in failed.items()
        ]
    return [
        f"{name}: not run: {state.name}: {state.message}"
        for name, state in states.items()
        if not state.is_completed()
    ]
