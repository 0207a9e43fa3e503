"""MLflow, the record: an experiment a benchmark, one flat run a (student, method, seed).

Written by the stages, never read back as an input. The store is ``MLFLOW_TRACKING_URI``, by default
``sqlite:///mlflow.db``.
"""

import argparse
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

from ferd.config import DistillationSettings, Method, Settings, ThreatModel
from ferd.errors import FerdError, Unreachable
from ferd.files import atomic_write
from tasks import params
from tasks.command import as_command, without_password
from tasks.git import BEHIND_RESULTS, CHANGED, git_if_there, head
from tasks.locks import held
from tasks.results.stored import FIGURES

DEFAULT_FILE = Path("mlflow.db")
DEFAULT_STORE = f"sqlite:///{DEFAULT_FILE}"
SETUP_LOCK = Path("mlflow.db.lock")
OURS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",  # half a minute; MLflow's own 7 are four
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",  # of a server that hangs; MLflow's own 120
}
os.environ.update({key: value for key, value in OURS.items() if not os.environ.get(key)})
ASKED = "asked"  # a run's tag: by which word it was asked for
OUTAGE_SECONDS = 600  # how long metrics are only kept after MLflow did not answer
LOCKED = "database is locked"
FULL = "disk is full"
CONNECT_SECONDS = 15
_unfinished: set["Run"] = set()  # of the stage that this process computes


def store() -> str:
    """MLflow's, by ``MLFLOW_TRACKING_URI``, which may be empty."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE


class Run:
    """One MLflow run; metrics are sent in batches. An outage stops no training, and hardly slows one."""

    def __init__(self, client: Any, run_id: str, ended: int | None = None) -> None:
        self._client, self._ended = client, ended
        self._pending: list[Any] = []
        self._send_after = 0.0
        self.run_id = run_id

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Send metrics, with any that an outage held back."""
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        now = int(time.time() * 1000)
        self._pending += [Metric(key, value, now, step) for key, value in metrics.items()]
        if time.monotonic() < self._send_after:
            return
        try:
            self._client.log_batch(self.run_id, metrics=self._pending)
            self._pending = []
        except MlflowException as error:
            self._send_after = time.monotonic() + OUTAGE_SECONDS
            _say(error, f"keeping metrics for {OUTAGE_SECONDS // 60} minutes, then trying again")

    def finish(self, status: str = "FINISHED") -> None:
        """Mark the run as ended so; where MLflow is out, the results are on disk all the same.

        A run that was ended before, and got more metrics, keeps its end, and so its duration.
        """
        from mlflow.exceptions import MlflowException

        _unfinished.discard(self)
        try:
            if self._pending:
                self._client.log_batch(self.run_id, metrics=self._pending)
            self._client.set_terminated(self.run_id, status, end_time=self._ended)
        except MlflowException as error:
            _say(error, f"run {self.run_id} stays open, {len(self._pending)} metrics are not in it")


def resume_or_start(
    resume: Path,
    benchmark: str,
    run_key: str,
    settings: str,
    task: str,
    parameters: Mapping[str, Any] | Settings,
) -> Run:
    """The run that this stage's interrupted attempt was writing, or a new one."""
    note = resume / "mlflow-run"
    if not note.exists():
        with atomic_write(note) as part:
            part.write_text(uuid4().hex, "utf-8")
    run = start_run(benchmark, run_key, settings, task, parameters, note.read_text("utf-8"))
    _unfinished.add(run)
    return run


def fail_unfinished() -> None:
    """Mark the run that this process has begun, if any, as failed; another attempt opens it again."""
    for run in list(_unfinished):
        run.finish("FAILED")


def start_run(
    benchmark: str,
    run_key: str,
    settings: str,
    task: str,
    parameters: Mapping[str, Any] | Settings,
    asked: str | None = None,
) -> Run:
    """A run for a stage, made once.

    Args:
        asked: of whom; whoever asks by the same word again is given the same run, open again.
    """
    asked = asked or uuid4().hex
    with connected() as client:
        tags = {
            "mlflow.runName": run_key,
            "run_key": run_key,
            "settings": settings,
            "dvc_stage": os.environ.get("DVC_STAGE", task),
            "mlflow.source.git.commit": head(),
            "git_dirty": str(bool(git_if_there(Path.cwd(), *CHANGED, "--", *BEHIND_RESULTS))).lower(),
            "prefect_run": os.environ.get("FERD_PREFECT_RUN", ""),
            "sweep_id": os.environ.get("FERD_SWEEP_ID", ""),
            ASKED: asked,
        }
        where = experiment(client, benchmark)
        run = _asked_for(client, where, asked)
        if run:
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            made = client.create_run(where, tags={key: value for key, value in tags.items() if value})
            run = _asked_for(client, where, asked) or made
        if not run.data.params:
            from mlflow.entities import Param

            flat = params.flatten(parameters) | _swept()
            client.log_batch(run.info.run_id, params=[Param(key, str(value)) for key, value in flat.items()])
        return Run(client, run.info.run_id)


def _asked_for(client: Any, where: str, asked: str) -> Any | None:
    """The run that was asked for so, if there is one, and no other.

    MLflow's client asks again where a server that is slow does not answer, and such a server makes a run each
    time.
    """
    found = client.search_runs([where], f"tags.{ASKED} = '{asked}'")
    first, *others = sorted(found, key=lambda run: not run.data.params) or [None]
    for other in others:
        client.delete_run(other.info.run_id)
    return first


def find_run(benchmark: str, run_key: str, settings: str) -> Run | None:
    """The latest run of these settings, and of the same sweep or night where this is a part of one."""
    part_of = os.environ.get("FERD_SWEEP_ID", "")
    own = f"tags.sweep_id = '{part_of}'" if part_of else "tags.sweep_id IS NULL"
    with connected() as client:
        found = client.search_runs(
            [experiment(client, benchmark)],
            f"tags.run_key = '{run_key}' and tags.settings = '{settings}' and {own}",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        return Run(client, found[0].info.run_id, found[0].info.end_time) if found else None


def robustness(
    attacks: Mapping[str, Mapping[str, Any]], other_balls: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """A result's figures as metrics: ``robust/<attack>/<figure>``, in a further ball ``robust-<ε>/...``."""
    balls = {"robust": attacks} | {
        f"robust-{ball['threat_model']['epsilon']:.3g}": ball["attacks"] for ball in other_balls
    }
    return {
        f"{ball}/{attack}/{figure}": values[figure]
        for ball, figures in balls.items()
        for attack, values in figures.items()
        for figure in FIGURES
    }


def student_parameters(
    student: str,
    name: str,
    seed: int,
    method: Method,
    schedule: DistillationSettings,
    threat: Mapping[str, Any] | ThreatModel,
) -> dict[str, Any]:
    """The parameters of a student's run: what is compared first, then all settings."""
    first = {"method": name, "gamma": method.utae.gamma, "student": student, "seed": seed}
    return first | params.flatten(method) | params.flatten(schedule) | params.flatten(threat)


def _swept() -> dict[str, str]:
    """The key that a sweep's point differs by, and its value: ``FERD_SWEPT``, as ``key=value``."""
    key, _, value = os.environ.get("FERD_SWEPT", "").partition("=")
    return {key: value} if key else {}


def experiment(client: Any, benchmark: str) -> str:
    """The identifier of a benchmark's experiment, made where it is missing."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(benchmark)
    if found:
        if found.lifecycle_stage == "deleted":  # on MLflow's page; it would take no run
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    location = None
    if client.tracking_uri.startswith("sqlite:"):
        location = (Path("mlartifacts") / benchmark).resolve().as_uri()
    try:
        return str(client.create_experiment(benchmark, artifact_location=location))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return str(client.get_experiment_by_name(benchmark).experiment_id)  # another process was faster


def _say(error: Exception, consequence: str) -> None:
    print(f"mlflow: {reason_of(error)}; {consequence}", file=sys.stderr)


def main() -> None:
    """``python -m tasks.tracking``: create the store's tables, which takes a first connection seconds."""
    argparse.ArgumentParser(description="Create the tables of MLflow's store.").parse_args()
    with as_command("tracking"), connected() as client:
        client.search_experiments(max_results=1)


@contextmanager
def connected() -> Iterator[Any]:
    """A connected client.

    One process of this folder connects to a database at a time, since a first connection creates its tables.

    Raises:
        FerdError: the store cannot be used; ``Unreachable`` where its server does not answer.
    """
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException, RestException
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    address = store()
    server = address.startswith("http")
    try:
        if not server and "://" in address:
            knock(address)
        with nullcontext() if server else held(SETUP_LOCK):
            client = MlflowClient(address)
        yield client
    except (MlflowException, SQLAlchemyError, OSError) as error:
        silent = server and not isinstance(error, RestException)  # a server's own words
        database = not address.startswith("sqlite") and isinstance(error, OperationalError | OSError)
        silent = silent or database or LOCKED in str(error)  # the file, for longer than SQLite waits
        reason = reason_of(error)
        mend = "free space" if FULL in reason else "start it, or correct MLFLOW_TRACKING_URI"
        raise (Unreachable if silent else FerdError)(
            f"mlflow: {without_password(address)} cannot be used: {reason}; {mend}"
        ) from None


def knock(address: str) -> None:
    """Of a database with a server: MLflow itself asks one that does not answer for two minutes.

    Raises:
        OSError: nothing listens at its host and port.
    """
    from sqlalchemy.engine import make_url

    url = make_url(address)
    if url.host and url.port:
        socket.create_connection((url.host, url.port), CONNECT_SECONDS).close()


def reason_of(error: Exception) -> str:
    """What MLflow says, in one line, without the password that may stand in the store's address, and SQL."""
    said = str(error).partition("[SQL:")[0]
    return " ".join(said.split()).replace(store(), without_password(store()))


if __name__ == "__main__":
    main()
