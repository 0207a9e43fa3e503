"""Deployments: what their forms ask for, and that the worker runs them, when asked and on a schedule."""

import json
import shutil
import time

import pytest
import yaml

from tests.conftest import ROOT, set_param, wait_until

pytestmark = pytest.mark.services

DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def test_a_deployment_is_run_by_the_worker(reproduced):
    path = reproduced.workspace / "results/digits/resnet8-w8/uniform-noise/s0.json"
    assert json.loads(path.read_text())["schema"] == "ferd-result/1"
    assert "7 of 7 stages to run" in reproduced.log()


def test_a_workers_limit_says_how_many_stages_of_a_clone_compute_at_a_time(reproduced, tmp_path):
    folder = tmp_path / "workspace"
    shutil.copytree(reproduced.workspace, folder, symlinks=True)
    set_param(folder, 300, "benchmarks", "digits", "distillation", "rounds")
    stages = [f"distill-digits@resnet8-w8-{method}-s0" for method in ("no-fae", "no-utae")]
    runs = [reproduced.submit("stage/stage", folder, name=stage) for stage in stages]

    def computing(stage):
        return bool(list(folder.glob(f".resume/{stage.replace('@', '-')}/*/state.pt")))

    wait_until(lambda: all(map(computing, stages)), 300, reproduced.log)  # neither has finished
    assert [reproduced.wait(run) for run in runs] == ["COMPLETED", "COMPLETED"], reproduced.log()


def test_a_clone_at_another_commit_refuses_a_grids_stage(reproduced):
    run = reproduced.submit("stage/stage", name="data@digits", commit="f" * 40)
    assert reproduced.wait(run) == "FAILED"
    assert (
        "ffffffffff is asked for; there, `git fetch && git checkout --force ffffffffff`"
        in reproduced.message(run)
    )


def test_only_stages_may_be_computed_by_a_further_machine(reproduced):
    queues = {
        name: reproduced.api(f"/deployments/name/{name}/{name}")["work_queue_name"]
        for name in ("nightly", "reproduce", "sweep", "stage")
    }
    assert {name for name, queue in queues.items() if queue == "stages"} == {"stage"}


@pytest.mark.parametrize("deployment", [entry["name"] for entry in DEPLOYMENTS])
def test_every_parameter_of_a_form_is_typed_and_described(services, deployment):
    found = services.api("/deployments/filter", {"deployments": {"name": {"any_": [deployment]}}})
    assert len(found) == 1
    fields = found[0]["parameter_openapi_schema"]["properties"]
    assert fields
    for name, field in fields.items():
        assert "type" in field or "anyOf" in field or "$ref" in field, name
        assert field["description"], name
    assert found[0]["description"]


def test_a_schedule_of_seconds_makes_runs_that_complete(reproduced):
    """With sqlalchemy 2.1 a Prefect server starts, but no schedule ever makes a run."""
    deployment = reproduced.api("/deployments/name/stage/stage")["id"]
    schedule = {"interval": 4, "anchor_date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    entry = {"active": True, "schedule": schedule, "parameters": {"name": "data@digits"}}
    created = reproduced.api(f"/deployments/{deployment}/schedules", [entry])
    scheduled = {
        "flow_runs": {"tags": {"all_": ["auto-scheduled"]}, "state": {"type": {"any_": ["COMPLETED"]}}},
        "deployments": {"id": {"any_": [deployment]}},
    }
    try:
        wait_until(lambda: len(reproduced.api("/flow_runs/filter", scheduled)) >= 2, 300, reproduced.log)
    finally:
        reproduced.api(f"/deployments/{deployment}/schedules/{created[0]['id']}", method="DELETE")
