"""The deployment of the nightly: one at a time, its verdict kept by Prefect."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.conftest import run_in, wait_until

pytestmark = pytest.mark.services


def test_of_two_nightlies_the_second_fails_and_the_first_finishes(services):
    first = services.submit("nightly/nightly", methods=["uniform-noise"], seeds=[0])
    wait_until(lambda: services.state(first) == "RUNNING", 120, services.log)
    second = services.submit("nightly/nightly", methods=["uniform-noise"], seeds=[0])
    assert services.wait(second, 120) == "FAILED"
    assert "another nightly is running in this folder" in services.message(second)
    assert services.wait(first, 300) == "COMPLETED", services.log()

    (branch,) = run_in(services.workspace, "git", "branch", "--list", "nightly/*").stdout.split()
    artifacts = services.api("/artifacts/filter", {"artifacts": {"key": {"any_": ["nightly"]}}})
    assert [artifact["flow_run_id"] for artifact in artifacts] == [first]
    assert branch in artifacts[0]["data"]
    assert services.environment["MLFLOW_TRACKING_URI"] in artifacts[0]["data"]


def test_a_night_of_days_ago_is_skipped(services):
    """As after a weekend without power: two or three would begin at once, and all but one fail and alert."""
    day_before = (datetime.now(UTC) - timedelta(days=2)).replace(microsecond=0)
    run = services.submit("nightly/nightly", scheduled=day_before.isoformat(), methods=["uniform-noise"])
    assert services.wait(run, 120) == "CANCELLED"
    assert services.message(run) == f"skipped: it was scheduled for {day_before:%Y-%m-%d %H:%M} UTC"


def test_its_form_describes_every_parameter(services):
    schema = services.api("/deployments/name/nightly/nightly")["parameter_openapi_schema"]
    assert set(schema["properties"]) == {"benchmarks", "methods", "seeds", "slots", "alert_block"}
    for name, field in schema["properties"].items():
        assert field["description"], name
