"""Links to MLflow's pages, of runs that are there."""

import json
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow import MlflowClient

from tasks.mlflow_view import nightly_links


@pytest.fixture
def client(tmp_path):
    return MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_nights_runs_stand_beside_the_latest_earlier_one_of_each(client):
    experiment = client.create_experiment("digits")

    def run(key, start, night=None):
        tags = {"run_key": key, **({"sweep_id": night} if night else {})}
        return client.create_run(experiment, start_time=start, tags=tags).info.run_id

    run("teacher", 1)
    by_hand = run("teacher", 2)
    run("ferd/s0", 3, "nightly-1")
    yesterdays = run("ferd/s0", 4, "nightly-2")
    tonight = {
        key: run(key, 10 + number, "nightly-3") for number, key in enumerate(("teacher", "ferd/s0", "new"))
    }
    run("teacher", 20)  # since

    links = nightly_links(client, experiment, "nightly-3")
    asked = parse_qs(urlsplit(links["beside the latest earlier ones"].replace("#/", "")).query)
    assert json.loads(asked["runs"][0]) == [
        tonight["new"],
        tonight["ferd/s0"],
        yesterdays,
        tonight["teacher"],
        by_hand,
    ]
    assert json.loads(asked["experiments"][0]) == [experiment]
    assert "searchFilter=tags.sweep_id+%3D+%27nightly-3%27" in links["tonight's runs"]
