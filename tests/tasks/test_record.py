"""The record is completed from results: those of this folder's runs, and those computed elsewhere."""

import json
import sys

import pytest
from mlflow import MlflowClient

from tests.conftest import run_in

FERD = "resnet8-w8/ferd/s0"


def complete(folder):
    answer = run_in(folder, sys.executable, "-m", "tasks.record", "digits")
    assert answer.returncode == 0, answer.stderr
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("digits")
    runs = client.search_runs([experiment.experiment_id])
    return client, experiment, {run.data.tags["run_key"]: run for run in runs}, len(runs)


@pytest.fixture
def result(finished_copy):
    return json.loads((finished_copy / f"results/digits/{FERD}.json").read_text())


def test_the_stages_own_runs_are_completed_not_copied(finished_copy):
    client, experiment, runs, number = complete(finished_copy)
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
    _, _, again, number = complete(finished_copy)
    assert number == 4 and (again[FERD].info.end_time, again[FERD].data.tags["completed"]) == before


@pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")  # of MLflow, in its own code
def test_the_model_gives_the_students_logits(finished_copy):
    import mlflow
    import torch

    from ferd.checkpoint import load_classifier

    client, experiment, runs, _ = complete(finished_copy)
    models = client.search_logged_models([experiment.experiment_id])
    (model,) = [model for model in models if model.source_run_id == runs[FERD].info.run_id]
    mlflow.set_tracking_uri(client.tracking_uri)
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    student = load_classifier(finished_copy / f"checkpoints/digits/{FERD}.safetensors")
    logits = mlflow.pyfunc.load_model(model.model_uri).predict(images.numpy())
    torch.testing.assert_close(torch.as_tensor(logits), student(images), rtol=1e-4, atol=1e-5)


def test_results_of_elsewhere_become_runs_with_their_rounds(finished_copy, result):
    (finished_copy / "mlflow.db").unlink()
    client, _, runs, number = complete(finished_copy)
    assert number == 4
    run = runs[FERD]
    assert run.data.tags["imported"] == "true" and run.info.status == "FINISHED"
    assert run.data.params["gamma"] == "0.5" and run.data.params["method"] == "ferd"
    assert run.data.metrics["robust/pgd20/worst"] == result["attacks"]["pgd20"]["worst"]
    history = client.get_metric_history(run.info.run_id, "generator/agreement")
    assert [point.step for point in history] == [1, 2, 3]


def test_a_changed_result_is_a_new_run(finished_copy, result):
    complete(finished_copy)
    result["attacks"]["pgd20"]["worst"] = 0.125
    (finished_copy / f"results/digits/{FERD}.json").write_text(json.dumps(result))
    _, _, _, number = complete(finished_copy)
    assert number == 5
