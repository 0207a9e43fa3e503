"""The record is completed from results: those of this folder's runs, and those computed elsewhere."""

import fcntl
import json
import os
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ferd.errors import FerdError
from tasks import params, process, record, tracking
from tasks.mlflow_view import ABLATION, GAMMA
from tasks.results.remembered import Remembered
from tests.conftest import run_in, tiny_params
from tests.tasks.results.test_stored import write_result

FERD = "resnet8-w8/ferd/s0"
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")  # of MLflow, in its own code


@pytest.fixture
def folder(finished_copy, monkeypatch):
    """A finished workspace, and the record of it."""
    monkeypatch.chdir(finished_copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished_copy}/mlflow.db")
    return finished_copy


def complete(folder):
    record.complete("digits", params.read())
    client, experiment, runs = runs_of(folder)
    return client, experiment, {run.data.tags["run_key"]: run for run in runs}, len(runs)


def test_as_a_command_it_says_what_it_completed(finished_copy):
    answer = run_in(finished_copy, sys.executable, "-m", "tasks.record", "digits")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "digits: complete in the record"


def test_a_folder_that_was_copied_is_told_where_its_artifacts_go(finished, folder, capsys, monkeypatch):
    said = f"mlflow: artifacts go to {finished}/mlartifacts/digits, outside this folder, which was moved or"
    complete(folder)
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith(said)]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/new.db")
    record.complete("digits", params.read())
    assert "outside this folder" not in capsys.readouterr().err


@pytest.fixture
def result(finished_copy):
    return json.loads((finished_copy / f"results/digits/{FERD}.json").read_text())


def test_parameters_are_those_that_the_student_was_made_with(folder, result, change_params):
    """Not today's: a γ that was changed since would be a wrong point of its chart."""
    before = params.read().methods["ferd"].utae.gamma
    change_params(folder, before / 2, "methods", "ferd", "utae", "gamma")
    found = record.parameters(result, params.read(), Remembered())
    assert (found["gamma"], found["utae.gamma"]) == (before, before)
    (folder / "dvc.lock").unlink()  # then today's are all that is known
    assert record.parameters(result, params.read(), Remembered())["gamma"] == before / 2


def runs_of(folder):
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("digits")
    return client, experiment, client.search_runs([experiment.experiment_id])


def test_the_stages_own_runs_are_completed_not_copied(folder):
    ended = {run.info.run_id: run.info.end_time for run in runs_of(folder)[2]}
    client, experiment, runs, number = complete(folder)
    assert {run.info.run_id: run.info.end_time for run in runs.values()}.items() >= ended.items()
    assert number == len(runs) == 4  # and the report's
    assert [item.path for item in client.list_artifacts(runs["report"].info.run_id)] == ["index.html"]
    run = runs[FERD]
    assert "imported" not in run.data.tags and run.data.tags["ablation"] == "gamma"
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"per_class.json", "s0.json", "s0.images.png"} <= artifacts
    assert run.inputs.dataset_inputs[0].dataset.name == "digits test"
    (model,) = client.search_logged_models([experiment.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert model.name == "classifier"
    assert "UTAE" in experiment.tags["mlflow.note.content"]
    before = run.info.end_time, run.data.tags["completed"]
    _, _, again, number = complete(folder)
    assert number == 4 and (again[FERD].info.end_time, again[FERD].data.tags["completed"]) == before


def test_the_model_gives_the_students_logits(folder, monkeypatch):
    import mlflow
    import torch

    from ferd.checkpoint import load_classifier

    client, experiment, runs, _ = complete(folder)
    models = client.search_logged_models([experiment.experiment_id])
    (model,) = [model for model in models if model.source_run_id == runs[FERD].info.run_id]
    mlflow.set_tracking_uri(client.tracking_uri)
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    student = load_classifier(folder / f"checkpoints/digits/{FERD}.safetensors")
    logits = mlflow.pyfunc.load_model(model.model_uri).predict(images.numpy())
    torch.testing.assert_close(torch.as_tensor(logits), student(images), rtol=1e-4, atol=1e-5)


def test_results_of_elsewhere_become_runs_with_their_rounds(folder, result):
    (folder / "mlflow.db").unlink()
    client, _, runs, number = complete(folder)
    assert number == 4
    run = runs[FERD]
    assert run.data.tags["imported"] == "true" and run.info.status == "FINISHED"
    assert run.data.params["gamma"] == "0.5" and run.data.params["method"] == "ferd"
    assert run.data.metrics["robust/pgd20/worst"] == result["attacks"]["pgd20"]["worst"]
    history = client.get_metric_history(run.info.run_id, "generator/agreement")
    assert [point.step for point in history] == [1, 2, 3]


def test_rounds_that_an_outage_kept_from_a_run_are_added(folder):
    """Each once: those that are there stay as they are."""
    client, _, (*runs,) = runs_of(folder)
    (run,) = [run.info.run_id for run in runs if run.data.tags["run_key"] == FERD]
    before = client.get_metric_history(run, "generator/agreement")
    with closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
        store.execute("DELETE FROM metrics WHERE run_uuid = ? AND step = 2", (run,))
    assert [point.step for point in client.get_metric_history(run, "generator/agreement")] == [1, 3]
    complete(folder)
    after = client.get_metric_history(run, "generator/agreement")
    assert {(point.step, point.value) for point in after} == {(point.step, point.value) for point in before}
    assert len(after) == 3


def test_a_changed_result_is_a_new_run(folder, result):
    complete(folder)
    result["attacks"]["pgd20"]["worst"] = 0.125
    (folder / f"results/digits/{FERD}.json").write_text(json.dumps(result))
    client, experiment, _, number = complete(folder)
    assert number == 5
    compared = client.search_runs(
        [experiment.experiment_id], f"tags.run_key = '{FERD}' and tags.{ABLATION} = '{GAMMA}'"
    )
    assert [run.data.metrics["robust/pgd20/worst"] for run in compared] == [0.125]


def test_a_result_of_elsewhere_is_one_run_whatever_was_computed_here_since(folder, result):
    complete(folder)
    path = folder / f"results/digits/{FERD}.json"
    own = path.read_bytes()
    result["attacks"]["pgd20"]["worst"] = 0.125
    path.write_text(json.dumps(result))
    os.utime(path, (0, 0))  # before the run of this folder began
    elsewhere = path.read_bytes()
    for content, worst in ((elsewhere, 0.125), (elsewhere, 0.125), (own, None), (elsewhere, 0.125)):
        path.write_bytes(content)
        client, experiment, _, number = complete(folder)
        assert number == 5
        point = f"tags.run_key = '{FERD}' and tags.{ABLATION} = '{GAMMA}'"
        [run] = client.search_runs([experiment.experiment_id], point)
        assert (run.data.metrics["robust/pgd20/worst"] == 0.125) is (worst is not None)


def test_a_run_that_is_completed_again_keeps_one_table_of_classes(folder):
    checkpoint, away = folder / f"checkpoints/digits/{FERD}.safetensors", folder / "away"
    checkpoint.rename(away)
    complete(folder)
    away.rename(checkpoint)  # as `dvc pull` brings it
    client, _, runs, _ = complete(folder)
    run = runs[FERD]
    file = client.download_artifacts(run.info.run_id, "per_class.json", str(folder))
    table = json.loads(Path(file).read_text(encoding="utf-8"))
    assert [row[0] for row in table["data"]] == [str(digit) for digit in range(10)]
    assert table["columns"][0] == "class" and {"clean", "pgd20", "all"} <= set(table["columns"])
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "per_class.json", "type": "table"}
    ]


def test_the_runs_of_a_night_on_another_machine_are_not_taken_for_these(folder, result, monkeypatch):
    _, _, runs, number = complete(folder)
    monkeypatch.setenv("FERD_SWEEP_ID", "nightly-1")
    night = tracking.start_run("digits", FERD, runs[FERD].data.tags["settings"], "distill", {})
    night.log({"robust/pgd20/worst": 0.125})
    night.finish()
    for _ in range(2):
        assert complete(folder)[3] == number + 1


def test_a_teacher_is_not_sent_as_a_model(folder):
    client, experiment, runs, _ = complete(folder)
    models = client.search_logged_models([experiment.experiment_id])
    assert runs["teacher"].info.run_id not in {model.source_run_id for model in models}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder with a result that was computed elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    write_result(tmp_path, "ferd", 0, 0.5)
    return tmp_path


def test_a_stage_that_starts_does_not_wait_while_results_are_sent(elsewhere, monkeypatch):
    free = []

    def sent(*_):
        with tracking.SETUP_LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free.append(True)

    monkeypatch.setattr(record, "_complete_run", sent)
    record.complete("digits", params.validate(tiny_params()))
    assert free == [True]


def test_an_outage_while_results_are_sent_is_one_line(elsewhere, monkeypatch):
    def out(*_):
        raise MlflowException("no\nanswer")

    monkeypatch.setattr(record, "_complete_run", out)
    with pytest.raises(FerdError, match=r"^mlflow: no answer; see to that, then run again"):
        record.complete("digits", params.validate(tiny_params()))


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({}, r"s0\.json: lacks 'threat_model'"),
        ({"threat_model": {}}, r"s0\.rounds\.jsonl, line 1: lacks 'round'"),
    ],
)
def test_what_cannot_be_imported_is_named_and_leaves_no_run(elsewhere, more, fault):
    path = elsewhere / f"results/digits/{FERD}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    with pytest.raises(FerdError, match=f"{fault}; delete the file and run its"):
        record.complete("digits", params.validate(tiny_params()))
    client = MlflowClient(f"sqlite:///{elsewhere}/mlflow.db")
    assert not client.search_runs([client.get_experiment_by_name("digits").experiment_id])


def test_a_record_is_completed_by_one_process_at_a_time(elsewhere, monkeypatch):
    finished, settings = [], params.validate(tiny_params())
    monkeypatch.setattr(record, "_complete_run", lambda *_: finished.append("second"))
    record.complete("digits", settings)  # makes the tables, which takes seconds
    finished.clear()
    with process.alone("record"):
        waiting = threading.Thread(target=record.complete, args=("digits", settings))
        waiting.start()
        waiting.join(2)
        finished.append("first")
    waiting.join(60)
    assert finished == ["first", "second"]
