"""A stage that did not complete never passes for done, whatever kept it from running."""

from prefect.states import Completed, Failed, Pending

from ferd.errors import FerdError
from flows.pipeline import failures_of
from tasks.stage import StageFailed


def test_nothing_failed_where_all_are_completed():
    assert failures_of({"data@digits": Completed(), "report": Completed()}) == []


def test_a_failed_stage_is_its_own_line_and_those_behind_it_are_none():
    error = StageFailed("teacher@digits", "no memory", retryable=False)
    states = {"teacher@digits": Failed(data=error), "report": Pending(name="NotReady")}
    assert failures_of(states) == ["teacher@digits: no memory"]


def test_any_other_exception_of_a_task_is_a_failure_too():
    states = {"teacher@digits": Failed(data=FerdError("dvc: validation failed")), "report": Completed()}
    assert failures_of(states) == ["teacher@digits: dvc: validation failed"]


def test_a_stage_that_was_not_run_is_a_failure_where_nothing_else_is():
    states = {"teacher@digits": Completed(), "report": Pending(message="lost")}
    assert failures_of(states) == ["report: not run: Pending: lost"]
