"""MLflow holds one flat run a (student, method, seed), written by two stages."""

import fcntl
import socket
import threading
import time
from functools import partial

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import DatabaseError, OperationalError

from ferd.errors import FerdError, Unreachable
from tasks import params, tracking
from tasks.distill import metrics_of
from tasks.git import head


@pytest.fixture
def own_store(monkeypatch, tmp_path):
    """A store of the test's own: MLflow keeps one that is named by a relative path open."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture(scope="module")
def client(finished):
    return MlflowClient(f"sqlite:///{finished}/mlflow.db")


def runs_of(client, key):
    experiment = client.get_experiment_by_name("digits")
    return client.search_runs([experiment.experiment_id], f"tags.run_key = '{key}'")


@pytest.mark.parametrize("key", ["teacher", "resnet8-w8/ferd/s0", "resnet8-w8/uniform-noise/s0"])
def test_training_and_evaluation_share_one_finished_run(client, key):
    (run,) = runs_of(client, key)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["robust/pgd20/average"] >= 0
    assert run.data.tags["mlflow.runName"] == key
    assert "mlflow.parentRunId" not in run.data.tags


def test_a_student_has_a_point_a_round_and_its_settings(client):
    (run,) = runs_of(client, "resnet8-w8/ferd/s0")
    history = client.get_metric_history(run.info.run_id, "generator/agreement")
    assert [point.step for point in history] == [1, 2, 3]
    assert run.data.params["gamma"] == "0.5"
    assert run.data.params["synthesis.weights.uni"] == "1.0"
    assert run.data.tags["dvc_stage"] == "distill-digits@resnet8-w8-ferd-s0"
    assert len(run.data.tags["prefect_run"]) == 36


def test_an_evaluation_goes_on_in_a_run_of_its_own_sweep_or_night_alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    started = {}
    for sweep in ("", "nightly-1"):
        monkeypatch.setenv("FERD_SWEEP_ID", sweep)
        assert tracking.find_run("digits", "a/b/s0", "settings") is None
        started[sweep] = tracking.start_run("digits", "a/b/s0", "settings", "distill", {}).run_id
    for sweep, run_id in started.items():
        monkeypatch.setenv("FERD_SWEEP_ID", sweep)
        assert tracking.find_run("digits", "a/b/s0", "settings").run_id == run_id


def test_an_evaluation_of_a_later_day_leaves_a_runs_duration(own_store):
    run = tracking.start_run("digits", "a/b/s0", "settings", "distill", {})
    run.finish()
    client = MlflowClient(tracking.store())
    ended = client.get_run(run.run_id).info.end_time
    time.sleep(0.01)
    later = tracking.find_run("digits", "a/b/s0", "settings")
    later.log({"robust/clean/average": 0.5})
    later.finish()
    found = client.get_run(run.run_id)
    assert found.info.end_time == ended
    assert found.data.metrics["robust/clean/average"] == 0.5


def test_a_machine_without_git_has_a_record_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert head() == ""
    assert tracking.start_run("digits", "a/b/s0", "settings", "distill", {}).run_id


def test_a_run_whose_stage_fails_is_failed_until_it_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "_unfinished", set())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")

    def status():
        with tracking.connected() as client:
            return client.get_run(begun.run_id).info.status

    begun = tracking.resume_or_start(tmp_path, "digits", "ferd", "hash", "distill", {})
    tracking.fail_unfinished()
    assert status() == "FAILED"
    again = tracking.resume_or_start(tmp_path, "digits", "ferd", "hash", "distill", {})
    assert again.run_id == begun.run_id and status() == "RUNNING"
    again.finish()
    tracking.fail_unfinished()  # a sweep's point distils, then evaluates, in one process
    assert status() == "FINISHED"


def test_metrics_of_an_outage_are_sent_when_it_may_be_over(monkeypatch):
    from mlflow.exceptions import MlflowException

    class Store:
        calls = 0
        sent = ()

        def log_batch(self, run_id, metrics):
            self.calls += 1
            if self.calls == 1:
                raise MlflowException("away")
            self.sent = [(metric.key, metric.step) for metric in metrics]

    store = Store()
    run = tracking.Run(store, "run")
    run.log({"a": 1.0}, step=1)
    run.log({"a": 2.0}, step=2)
    assert store.calls == 1
    later = time.monotonic() + tracking.OUTAGE_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    run.log({"a": 3.0}, step=3)
    assert store.sent == [("a", 1), ("a", 2), ("a", 3)]


def test_metrics_of_an_outage_are_sent_at_the_end_at_the_latest():
    done = []

    class Store:
        def log_batch(self, run_id, metrics):
            done.append([(metric.key, metric.value, metric.step) for metric in metrics])
            if len(done) == 1:
                raise MlflowException("away")

        def set_terminated(self, run_id, status, end_time=None):
            done.append(status)

    run = tracking.Run(Store(), "run")
    run.log({"a": 1.0}, step=1)
    run.log({"a": 2.0}, step=2)
    run.finish()
    assert done[1:] == [[("a", 1.0, 1), ("a", 2.0, 2)], "FINISHED"]


def test_a_store_that_does_not_answer_is_told_without_its_password(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab:s3cret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unreachable, match=r"mlflow: http://127\.0\.0\.1:9 cannot be used: ") as told:
        tracking.find_run("digits", "teacher", "0")
    assert "s3cret" not in str(told.value)


def test_a_run_that_cannot_be_asked_for_is_not_taken_for_gone(monkeypatch, tmp_path):
    """Else the rounds before an outage and those after it would be two runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "mlflow-run").write_text("asked before")
    with pytest.raises(Unreachable, match="cannot be used"):
        tracking.resume_or_start(tmp_path, "digits", "ferd", "hash", "distill", {})
    assert (tmp_path / "mlflow-run").read_text() == "asked before"


def test_a_run_that_was_deleted_is_made_again(own_store, tmp_path):
    again = partial(tracking.resume_or_start, tmp_path, "digits", "ferd", "hash", "distill", {"seed": 0})
    first = again()
    first.finish()
    assert again().run_id == first.run_id
    with tracking.connected() as client:
        assert client.get_run(first.run_id).info.status == "RUNNING"
        client.delete_run(first.run_id)
    second = again()
    assert second.run_id != first.run_id
    with tracking.connected() as client:
        assert client.get_run(second.run_id).data.params == {"seed": "0"}


def test_a_run_that_a_slow_server_made_twice_is_one(own_store, monkeypatch):
    """MLflow's client repeats a request that was not answered in time."""
    make = MlflowClient.create_run

    def twice(*arguments, **named):
        make(*arguments, **named)
        return make(*arguments, **named)

    monkeypatch.setattr(MlflowClient, "create_run", twice)
    run = tracking.start_run("digits", "a/b/s0", "settings", "distill", {"seed": 0})
    with tracking.connected() as client:
        (kept,) = runs_of(client, "a/b/s0")
        assert kept.info.run_id == run.run_id
        assert kept.data.params == {"seed": "0"}


def test_an_attempt_that_broke_off_while_it_asked_for_a_run_is_given_it(own_store, monkeypatch, tmp_path):
    again = partial(tracking.resume_or_start, tmp_path, "digits", "a/b/s0", "hash", "distill", {"seed": 0})
    with monkeypatch.context() as outage:
        outage.setattr(MlflowClient, "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
        with pytest.raises(FerdError, match="gone"):
            again()
    run = again()
    with tracking.connected() as client:
        (kept,) = runs_of(client, "a/b/s0")
        assert (kept.info.run_id, kept.data.params) == (run.run_id, {"seed": "0"})


def test_an_experiment_that_was_deleted_takes_runs_again(own_store):
    with tracking.connected() as client:
        made = tracking.experiment(client, "digits")
        client.delete_experiment(made)
        assert tracking.experiment(client, "digits") == made
        assert client.create_run(made).info.experiment_id == made


def test_an_experiment_that_another_process_makes_meanwhile_is_taken(own_store, monkeypatch):
    with tracking.connected() as client:
        made = tracking.experiment(client, "digits")
        ask, answers = client.get_experiment_by_name, [None]
        monkeypatch.setattr(
            client, "get_experiment_by_name", lambda name: answers.pop() if answers else ask(name)
        )
        assert tracking.experiment(client, "digits") == made
        assert answers == []


def test_further_balls_are_metrics_of_their_own():
    figures = {"average": 0.5, "worst": 0.1, "nsd": 0.4, "n": 10, "per_class": [0.5]}
    ball = {"threat_model": {"epsilon": 0.0157}, "attacks": {"pgd20": figures | {"average": 0.7}}}
    assert tracking.robustness({"clean": figures}, [ball]) == {
        "robust/clean/average": 0.5,
        "robust/clean/worst": 0.1,
        "robust/clean/nsd": 0.4,
        "robust-0.0157/pgd20/average": 0.7,
        "robust-0.0157/pgd20/worst": 0.1,
        "robust-0.0157/pgd20/nsd": 0.4,
    }


def test_settings_are_flattened_to_dotted_keys():
    assert params.flatten({"a": {"b": 1}, "c": [2]}) == {"a.b": 1, "c": [2]}


def test_a_warm_up_round_has_no_student_metrics():
    from ferd.distillation import RoundRecord

    record = RoundRecord(1, 0.1, 0.9, [0.25, 0.75], [None, 1.0], {"oh": 2.0}, {})
    assert metrics_of(record) == {
        "generator/agreement": 0.9,
        "generator/largest_proportion": 0.75,
        "generator/oh": 2.0,
        "student/learning_rate": 0.1,
    }


def test_a_store_that_another_process_writes_to_for_long_is_worth_another_try(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(Unreachable), tracking.connected():
        raise MlflowException("(sqlite3.OperationalError) database is locked")


def test_a_database_whose_server_is_down_is_worth_another_try_at_once(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@127.0.0.1:1/mlflow")
    monkeypatch.setattr("mlflow.MlflowClient", lambda _: pytest.fail("MLflow would ask for two minutes"))
    said = r"^mlflow: postgresql://127\.0\.0\.1:1/mlflow cannot be used: .*Connection refused; start it, or"
    with pytest.raises(Unreachable, match=said) as raised, tracking.connected():
        pass
    assert "secret" not in str(raised.value)


def test_a_database_that_does_not_answer_is_worth_another_try_and_its_password_stays_hidden(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}/mlflow"
        store = f"postgresql://me:secret@{address}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)

        def unanswered(_):  # MLflow's own client takes a minute and a half over it
            raise OperationalError("select 1", {}, Exception(f"no connection to {store}"))

        monkeypatch.setattr("mlflow.MlflowClient", unanswered)
        said = f"^mlflow: postgresql://{address} cannot"
        with pytest.raises(Unreachable, match=said) as raised, tracking.connected():
            pass
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("store", ["mlruns", "databricks"])
def test_a_store_that_is_no_address_is_left_to_mlflow(monkeypatch, tmp_path, store):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setattr("mlflow.MlflowClient", lambda address: address)
    with tracking.connected() as client:
        assert client == store


def test_a_full_disk_is_not_told_to_be_started(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    full = OperationalError("CREATE TABLE x", {}, Exception("database or disk is full"))
    said = r"cannot be used: \(builtins\.Exception\) database or disk is full; free space$"
    with pytest.raises(FerdError, match=said), tracking.connected():
        raise full


def test_a_file_that_is_no_database_is_one_line(monkeypatch, tmp_path):
    """What MLflow raises in the end; it takes a minute and a half over it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(FerdError, match="file is not a database") as raised, tracking.connected():
        raise DatabaseError("select 1", {}, Exception("file is not a database"))
    assert not isinstance(raised.value, Unreachable) and "\n" not in str(raised.value)


def test_a_database_is_connected_to_by_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    finished = []

    def second():
        with tracking.connected():
            finished.append("second")

    second()  # makes the tables, which takes seconds
    finished.clear()
    with tracking.SETUP_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(2)
        finished.append("first")
    waiting.join(60)
    assert finished == ["first", "second"]
