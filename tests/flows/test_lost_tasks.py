"""Prefect's ephemeral server has lost tasks: seen, not to be provoked, and so faked here."""

import pytest

from ferd.errors import FerdError
from flows import pipeline
from tasks.stage import Stage

STAGES = [Stage("teacher@digits", (), True, ()), Stage("report", ("teacher@digits",), True, ())]


@pytest.fixture
def answers(monkeypatch):
    """``run_stages`` gives these answers in turn; -> the stages that it was asked for each time."""

    def fake(*given):
        asked, left = [], list(given)

        def run_stages(stages, view, slots):
            asked.append([stage.name for stage in stages])
            return left.pop(0)

        monkeypatch.setattr(pipeline, "run_stages", run_stages)
        monkeypatch.setattr(pipeline, "student_stages", lambda *_: [])
        monkeypatch.setattr(pipeline, "plan", lambda _: STAGES)
        return asked

    return fake


def test_what_was_lost_is_submitted_once_more(answers, capsys):
    asked = answers(([], {"report": "Pending: None"}), ([], {}))
    pipeline.bring_up_to_date("digits", None, None, 2)
    assert asked == [["teacher@digits", "report"], ["report"]]
    assert "Prefect did not run report; submitting again" in capsys.readouterr().out


def test_what_is_lost_twice_is_an_error_and_never_passes_for_done(answers):
    answers(([], {"report": "Pending: None"}), ([], {"report": "Pending: None"}))
    with pytest.raises(FerdError, match="report: not run: Pending"):
        pipeline.bring_up_to_date("digits", None, None, 2)


def test_stages_behind_a_failed_one_are_not_submitted_again(answers):
    asked = answers((["teacher@digits: no memory"], {"report": "NotReady"}))
    with pytest.raises(FerdError, match="teacher@digits: no memory"):
        pipeline.bring_up_to_date("digits", None, None, 2)
    assert len(asked) == 1
