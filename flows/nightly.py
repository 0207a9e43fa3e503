"""The nightly reproduction: benchmarks from scratch, and a verdict on every accuracy.

python -m flows.nightly
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from prefect.states import Cancelled

from ferd.errors import FerdError
from flows.alert import alert, check
from flows.pipeline import (
    TASK_RUNNER,
    as_command,
    check_slots,
    create_record,
    evaluations,
    require_known,
    run_stale,
    tried_again,
)
from flows.server import own_server
from tasks import night, params, tracking
from tasks.command import command_line
from tasks.dvc_pipeline import Pipeline
from tasks.mlflow_view import address, nightly_links
from tasks.night import Night
from tasks.results import verdict
from tasks.results.verdict import Verdict
from tasks.stage import Stage

MOST_NAMED = 5  # figures in the message of a failure


@flow(name="nightly", task_runner=TASK_RUNNER, on_failure=[alert], on_crashed=[alert])
def nightly(
    benchmarks: list[str] | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    slots: int = 2,
    alert_block: str | None = None,
) -> State[None] | None:
    """Compute benchmarks from scratch and compare every accuracy with the committed one.

    Fails, and alerts, where a worst-class figure fell or any other changed by more than is tolerated. The
    committed results stay as they are; tonight's are kept as a Git branch `nightly/...`. A night whose
    machine was off when it should have begun is cancelled the day after: it would begin beside the next.

    Args:
        benchmarks: Benchmarks of params.yaml; by default those of its block `nightly`.
        methods: Names of params.yaml; by default all that dvc.yaml has for the benchmarks.
        seeds: By default all that dvc.yaml has.
        slots: How many stages compute at a time.
        alert_block: A notification block to alert by, `type/name`, such as `sendgrid-email/team` for e-mail.
            A webhook is set by FERD_ALERT_WEBHOOK in the worker's environment instead.
    """
    scheduled = flow_run.scheduled_start_time
    if datetime.now(UTC) - scheduled > night.LASTS:
        return Cancelled(message=f"skipped: it was scheduled for {scheduled:%Y-%m-%d %H:%M} UTC")
    check(alert_block)
    check_slots(slots)
    what = {"benchmarks": benchmarks, "methods": methods, "seeds": seeds}
    with night.alone():
        tonight = night.open_night(what, datetime.now(UTC))
        settings = params.read(tonight.folder / params.PARAMS)
        names = benchmarks or settings.nightly.benchmarks
        make_experiments(names, settings)
        print(f"night {tonight.name}{' goes on' if tonight.goes_on else ''}", flush=True)
        with tonight.entered():
            planned = reproduce(tonight, what, names, slots)
            tonight.keep(what)
            verdicts = verdict.compare(night.pairs(tonight, planned), settings.nightly.tolerances)
            undelivered = deliver(tonight, names, verdicts, planned)
        tonight.finish(what)
    print(f"night {tonight.name}: {verdict.headline(verdicts)}")
    if faults := [*verdict.faults(verdicts), *undelivered]:
        more = [f"and {len(faults) - MOST_NAMED} more"] if len(faults) > MOST_NAMED else []
        raise FerdError("; ".join([verdict.headline(verdicts), *faults[:MOST_NAMED], *more]))
    return None


def make_experiments(names: Sequence[str], settings: params.Params) -> None:
    """MLflow's experiments, made here and not in a night's folder, where a local store would keep files.

    Raises:
        FerdError: a benchmark is unknown.
    """
    for name in names:
        settings.benchmark(name)
    with tracking.connected() as client:
        for name in names:
            tracking.experiment(client, name)


def reproduce(tonight: Night, what: Mapping[str, Any], benchmarks: Sequence[str], slots: int) -> list[Stage]:
    """Run all stages of the benchmarks that have not been run tonight; -> all of them."""
    pipeline = Pipeline()
    targets = [
        target
        for benchmark in benchmarks
        for target in evaluations(pipeline, benchmark, what["methods"], what["seeds"])
    ]
    planned = pipeline.plan(targets, report=True)
    if not tonight.goes_on:
        tonight.begin(what, [stage.name for stage in planned])
        planned = Pipeline().plan(targets, report=True)  # which reads dvc.lock again
    run_stale("nightly", planned, slots, anew=True)
    return planned


def deliver(
    tonight: Night, benchmarks: Sequence[str], verdicts: Sequence[Verdict], planned: Sequence[Stage]
) -> list[str]:
    """Verdicts to Prefect, results to Git, files to the remote; -> what failed: the verdict stands anyway."""
    undelivered = []

    @contextmanager
    def told(what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, the others are delivered
            reason = " ".join(str(error).split()) or type(error).__name__
            undelivered.append(f"{what}: {reason}")

    with told("no page of the verdicts"):
        page = write_page(tonight, benchmarks, verdicts)
        create_markdown_artifact(page, key="nightly", description=verdict.headline(verdicts))
    with told(f"no branch {tonight.branch}, the results are in {tonight.folder}"):
        tonight.publish()
        print(f"night {tonight.name}: git branch {tonight.branch}")
    with told("files are not on the remote"):
        push(tonight, [stage.name for stage in planned])
    return undelivered


@tried_again()
def push(tonight: Night, stages: Sequence[str]) -> None:
    """What tonight made, to the DVC remote, if there is one."""
    tonight.push(stages)


def write_page(tonight: Night, benchmarks: Sequence[str], verdicts: Sequence[Verdict]) -> str:
    """The artifact: verdicts, files that changed, and where to look further."""
    changed = tonight.changed_files()
    files = [f"- {kind}: `{path}`" for kind, paths in changed.items() for path in paths]
    with tracking.connected() as client:
        links = [
            f"- {benchmark}: [{title}]({address()}{link})"
            for benchmark in benchmarks
            for title, link in nightly_links(
                client, tracking.experiment(client, benchmark), tonight.sweep_id
            ).items()
        ]
    return "\n".join(
        [
            f"# Night {tonight.name}: {verdict.headline(verdicts)}",
            "",
            f"Computed from scratch at commit `{tonight.commit[:10]}`; kept as the Git branch "
            f"`{tonight.branch}`: `git diff {tonight.commit[:10]} {tonight.branch} -- results`.",
            "",
            "## Verdicts",
            "",
            "Percent of the images, NSD as a fraction; means over seeds.",
            "",
            verdict.markdown(verdicts),
            "",
            f"## What DVC finds changed (`dvc diff {tonight.commit[:10]} {tonight.branch}`, without times)",
            "",
            *(files or ["Nothing: every file has the same bytes."]),
            "",
            "## MLflow",
            "",
            *links,
            "",
        ]
    )


def main() -> None:
    """Parse the command line and run a night."""
    parser = command_line(__doc__)
    parser.add_argument("--benchmarks", nargs="+", help="by default those of params.yaml's block nightly")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--slots", type=int, default=2, help="stages that compute at a time")
    parser.add_argument("--alert-block", help="a Prefect notification block, type/name")
    args = parser.parse_args()
    with as_command("nightly"):
        for benchmark in args.benchmarks or params.read().nightly.benchmarks:
            require_known(benchmark, args.methods)
        create_record()
        with own_server():
            nightly(args.benchmarks, args.methods, args.seeds, args.slots, args.alert_block)


if __name__ == "__main__":
    main()
