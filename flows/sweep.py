"""Sweep one key of the settings over values and seeds, on this machine or on a Ray cluster.

python -m flows.sweep --benchmark cifar10 --student resnet18 --key utae.gamma --values 0 0.3 0.5 --seeds 0 1 2
"""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.futures import as_completed

from ferd.errors import FerdError
from flows.pipeline import (
    TASK_RUNNER,
    Session,
    as_command,
    attempt,
    check_slots,
    create_record,
    failures_of,
    prefect_run,
    run_stale,
    tried_again,
)
from flows.progress import LiveView
from flows.server import own_server
from tasks.command import command_line
from tasks.dvc_pipeline import Pipeline
from tasks.results.stored_sweeps import Value
from tasks.slots import SLOTS
from tasks.stage import stoppable
from tasks.sweep import Point, Sweep, parse_value, print_table

CONNECT_SECONDS = 10


@flow(name="sweep", task_runner=TASK_RUNNER)
def sweep(
    benchmark: str = "digits",
    student: str | None = None,
    method: str = "ferd",
    key: str = "utae.gamma",
    values: list[Value] = [0, 0.1, 0.3, 0.5, 0.7, 0.9],  # noqa: B006  a form shows it; nothing changes it
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    slots: int = 2,
    ray: str | None = None,
    gpus: float = 1.0,
) -> None:
    """Distil and evaluate a student for every value of one key and every seed; what is there already stays.

    Args:
        benchmark: a benchmark of params.yaml; its teacher and data are brought up to date first.
        student: a network; by default the benchmark's first student.
        method: a method of params.yaml that makes its own images.
        key: a key of the method's block or of the benchmark's: `utae.gamma`, `threat_model.epsilon`.
        values: what the key is set to, each in turn.
        seeds: the students' seeds.
        slots: how many points compute at a time on this machine, spread over its GPUs.
        ray: the address of a Ray cluster (`HOST:6379`), to compute there instead.
        gpus: with ray, the GPUs of a point where the cluster has any; 0.5 puts two points on one.
    """
    check_slots(slots)
    asked = Sweep(benchmark, student, method, key, values, seeds)
    runner = _ray_runner(ray) if ray else None
    bring_inputs_up_to_date(benchmark, slots)
    points = asked.points()
    missing = [point for point in points if not point.done]
    print(f"sweep {asked.id}: {len(missing)} of {len(points)} points to run", flush=True)
    failures = []
    if missing:
        failures = on_ray(missing, asked.threads, gpus, runner) if runner else on_this_machine(missing, slots)
    if file := asked.write_results():
        print_table(asked)
        print(f"results: {file}", flush=True)
    if failures:
        raise FerdError("; ".join(failures))
    print(f"compare: {asked.link()}", flush=True)


def bring_inputs_up_to_date(benchmark: str, slots: int) -> None:
    """The benchmark's data and teacher, by their DVC stages."""
    inputs = Pipeline().plan([f"teacher@{benchmark}"])
    if any(stage.stale for stage in inputs):
        run_stale(benchmark, inputs, slots)


def on_this_machine(points: Sequence[Point], slots: int) -> list[str]:
    """Compute the points, ``slots`` at a time; -> what failed, a line each."""
    with LiveView(len(points)) as view:
        submit: Any = run_point.submit  # its overloads do not take typed arguments
        session = Session(view, slots)
        with stoppable():
            futures = {point.name: submit(point, session) for point in points}
            for future in futures.values():
                future.wait()
    return failures_of({name: future.state for name, future in futures.items()})


@tried_again(task_run_name="{point.name}")
def run_point(point: Point, session: Session) -> None:
    """Compute a point in a process of its own, when there is a place for it."""
    with session.room() as watched, session.gpus.one() as gpu:
        environment = {SLOTS: str(session.slots), **gpu, **prefect_run()}
        attempt(
            point.name,
            session,
            lambda on_event: point.compute(Path(), watched(on_event), environment),
        )


def on_ray(points: Sequence[Point], threads: int, gpus: float, runner: Any) -> list[str]:
    """Compute the points on the cluster that ``runner`` is connected to; -> what failed, a line each."""

    # of its own, for its runner; without parameters, which Prefect's server takes up to 512 KiB of
    @flow(name="points-on-ray", task_runner=runner)
    def points_on_ray() -> list[str]:
        import ray
        from prefect_ray.context import remote_options

        submit: Any = run_point_elsewhere.submit
        record = os.environ["MLFLOW_TRACKING_URI"]
        with remote_options(num_cpus=threads, num_gpus=gpus if ray.cluster_resources().get("GPU") else 0):
            futures = {point.name: submit(point, record, prefect_run()) for point in points}
        of_future = {future: point for point, future in zip(points, futures.values(), strict=True)}
        done: Iterator[Any] = as_completed(list(of_future))
        for number, future in enumerate(done, 1):
            future.wait()
            point, files = of_future[future], future.result(raise_on_failure=False)
            if isinstance(files, dict):
                point.keep(files)
            print(f"[{number}/{len(points)}] {point.name}: {future.state.name.lower()}", flush=True)
        return failures_of({name: future.state for name, future in futures.items()})

    return points_on_ray()


@tried_again(task_run_name="{point.name}")
def run_point_elsewhere(point: Point, record: str, environment: Mapping[str, str]) -> dict[str, bytes]:
    """Compute a point in the clone that its machine names by ``FERD_WORKSPACE``; -> its results' files."""
    workspace = Path(os.environ.get("FERD_WORKSPACE", "."))
    point.compute(workspace, lambda _: None, {**environment, "MLFLOW_TRACKING_URI": record})
    return point.files(workspace)


def _ray_runner(address: str) -> Any:
    """Connects to a cluster that runs already.

    Raises:
        FerdError: the extra is not installed, there are no servers that all machines can use, or nothing
            answers at the address.
    """
    try:
        from prefect_ray.task_runners import RayTaskRunner
    except ImportError:
        raise FerdError("ray: not installed; pip install -c constraints.txt -e '.[ray]'") from None
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        if not os.environ.get(name, "").startswith("http"):
            raise FerdError(f"ray: all machines need one server; set {name} to its address (make up)")
    _refuse_silent(address)
    return RayTaskRunner(address, {"log_to_driver": False, "logging_level": "ERROR"})


def _refuse_silent(address: str) -> None:
    """Ask at ``HOST:PORT``, since Ray itself would wait for it for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS):
            pass
    except (OSError, ValueError) as error:
        reason = "not HOST:PORT" if isinstance(error, ValueError) else error.strerror or error
        raise FerdError(
            f"ray: no cluster answers at {address} ({reason}); ray start it, or correct the address"
        ) from None


def main() -> None:
    """Parse the command line, check it, run the flow."""
    parser = command_line(__doc__)
    parser.add_argument("--benchmark", default="digits")
    parser.add_argument("--student", help="a network; by default the benchmark's first student")
    parser.add_argument("--method", default="ferd")
    parser.add_argument("--key", required=True, help="of the method or the benchmark: threat_model.epsilon")
    parser.add_argument("--values", nargs="+", type=parse_value, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--slots", type=int, default=2, help="points that compute at a time on this machine")
    parser.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster to compute on, HOST:6379")
    parser.add_argument(
        "--gpus", type=float, help="with --ray: GPUs of a point, where there are any; 1 by default"
    )
    args = vars(parser.parse_args())
    with as_command("sweep"):
        if args["gpus"] is not None and not args["ray"]:
            raise FerdError("--gpus is of points on a Ray cluster; give --ray, or take it away")
        args["gpus"] = 1.0 if args["gpus"] is None else args["gpus"]
        check_slots(args["slots"])
        Sweep(*(args[name] for name in ("benchmark", "student", "method", "key", "values", "seeds")))
        create_record()
        with own_server():
            sweep(**args)


if __name__ == "__main__":
    main()
