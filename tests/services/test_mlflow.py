"""MLflow on PostgreSQL, artifacts on S3 through its proxy."""

import sys

import pytest

pytestmark = pytest.mark.services

ROUND_TRIP = """
import hashlib, os, pathlib, sys
from mlflow import MlflowClient
from mlflow.entities import Metric

client = MlflowClient()
run = client.create_run(client.create_experiment("round-trip")).info
client.log_batch(run.run_id, metrics=[Metric("loss", step / 2, step, step) for step in range(90)])
history = client.get_metric_history(run.run_id, "loss")
assert [metric.value for metric in history] == [step / 2 for step in range(90)]

sent = pathlib.Path(sys.argv[1]) / "weights.bin"
sent.write_bytes(os.urandom(30 << 20))
for key in [key for key in os.environ if key.startswith("AWS_")]:
    del os.environ[key]  # the server alone talks to S3
client.log_artifact(run.run_id, str(sent))
got = pathlib.Path(client.download_artifacts(run.run_id, "weights.bin", sys.argv[2]))
assert hashlib.sha256(got.read_bytes()).digest() == hashlib.sha256(sent.read_bytes()).digest()
print(run.artifact_uri)
"""
LIST = """
import boto3
for item in boto3.client("s3").list_objects_v2(Bucket="ferd", Prefix="mlflow/")["Contents"]:
    print(item["Key"], item["Size"])
"""
RUNS = """
from mlflow import MlflowClient
client = MlflowClient()
for run in client.search_runs([client.get_experiment_by_name("digits").experiment_id]):
    tags, metrics = run.data.tags, run.data.metrics
    print(tags["run_key"], tags["prefect_run"], metrics.get("robust/pgd20/average"))
"""


def test_metrics_and_a_large_artifact_go_through_the_proxy(services, tmp_path):
    (tmp_path / "got").mkdir()
    said = services.run(sys.executable, "-c", ROUND_TRIP, str(tmp_path), str(tmp_path / "got"))
    assert said.startswith("mlflow-artifacts:/")
    assert f"weights.bin {30 << 20}" in services.run(sys.executable, "-c", LIST)


def test_stages_of_a_deployment_write_their_record_there(reproduced):
    found = [line.split() for line in reproduced.run(sys.executable, "-c", RUNS).splitlines()]
    for key in ("teacher", "resnet8-w8/uniform-noise/s0"):
        [(flow_run, average)] = [rest for name, *rest in found if name == key]
        assert reproduced.api(f"/flow_runs/{flow_run}")["name"]
        assert 0 <= float(average) <= 1
