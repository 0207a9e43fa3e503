"""What a task of a flow does with a failure: waits, tries again, or says that it is over."""

import logging
import signal
from types import SimpleNamespace

import httpx
import pytest
from prefect import flow

from ferd.errors import FerdError, Unreachable
from flows import pipeline
from flows.pipeline import RETRIES, Session
from flows.progress import LiveView
from tasks.slots import SLOTS
from tasks.stage import Stage, StageBusy, StageFailed, stopped

STAGE = Stage("distill", (), True, ("tasks.distill",), ())


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (StageFailed("distill", "killed", retryable=True), 1 + RETRIES),
        (Unreachable("the remote does not answer"), 1 + RETRIES),
        (StageFailed("distill", "gamma is -1", retryable=False), 1),
        (FerdError("no such stage"), 1),
    ],
)
def test_what_may_pass_is_tried_again_and_nothing_else(prefect_server, monkeypatch, error, attempts):
    monkeypatch.setattr(pipeline, "RETRY_DELAYS_SECONDS", [0.0, 0.0])
    made = []

    @pipeline.tried_again()
    def fails():
        made.append(1)
        raise error

    @flow
    def whole():
        fails.submit().wait()
        return "over"

    assert whole() == "over"
    assert len(made) == attempts


def test_a_stop_ends_the_pause_before_another_attempt(prefect_server, monkeypatch):
    monkeypatch.setattr(pipeline, "RETRY_DELAYS_SECONDS", [600.0, 600.0])
    made = []

    @pipeline.tried_again()
    def fails():
        made.append(1)
        stopped.set()  # as Ctrl-C does, a little later
        raise Unreachable("the remote does not answer")

    @flow
    def whole():
        return str(fails(return_state=True).result(raise_on_failure=False))

    try:
        assert whole().endswith("not run, since the flow was stopped")
    finally:
        stopped.clear()
    assert len(made) == 1


def test_a_stage_that_another_flow_has_is_waited_for_and_told_of_once(monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "BUSY_POLL_SECONDS", 0.01)
    answers = [StageBusy("distill", "busy", retryable=True)] * 2

    def work(_):
        if answers:
            raise answers.pop()

    pipeline.work_when_free("distill", Session(LiveView(1), slots=1), work)
    assert not answers
    assert capsys.readouterr().out.count("waiting for another process") == 1


@pytest.mark.parametrize("error", [FerdError("no such file"), OSError(28, "No space left on device")])
def test_a_fault_of_the_work_is_shown_as_failed(monkeypatch, capsys, error):
    monkeypatch.setattr(pipeline, "get_run_logger", logging.getLogger)

    def work(_):
        raise error

    with pytest.raises(type(error)):
        pipeline.attempt("distill", Session(LiveView(3), slots=1), work)
    assert capsys.readouterr().out == f"[1/3] distill: failed: {error}\n"


def test_a_stage_that_a_stop_has_ended_is_shown_as_stopped_and_not_tried_again(monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "get_run_logger", logging.getLogger)
    monkeypatch.setattr(pipeline, "task_run", SimpleNamespace(run_count=1))

    def work(_):
        stopped.set()
        raise StageFailed("distill", "killed", retryable=True)

    try:
        with pytest.raises(StageFailed) as failed:
            pipeline.attempt("distill", Session(LiveView(3), slots=1), work)
    finally:
        stopped.clear()
    assert not failed.value.retryable
    assert capsys.readouterr().out == "[1/3] distill: stopped\n"


@pytest.mark.parametrize("status", [404, 500])
def test_an_answer_that_asks_for_no_password_is_not_told_as_one(handlers, status):
    request = httpx.Request("GET", "http://127.0.0.1:9/api")
    answer = httpx.Response(status, request=request)
    with pytest.raises(httpx.HTTPStatusError), pipeline.as_command("reproduce"):
        raise httpx.HTTPStatusError("no", request=request, response=answer)


def test_no_record_is_begun_in_a_folder_without_settings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(pipeline.subprocess, "Popen", lambda *_, **__: pytest.fail("begun"))
    with pytest.raises(FerdError, match=r"^params\.yaml: not found"):
        pipeline.create_record()


def test_a_closed_terminal_ends_a_command_as_a_termination_does(handlers):
    with pipeline.as_command("reproduce"):
        ends = {signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    [end] = ends
    with pytest.raises(SystemExit) as ended:
        end(signal.SIGHUP, None)
    assert ended.value.code == 128 + signal.SIGHUP


def test_a_command_that_nohup_began_outlives_its_terminal(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with pipeline.as_command("reproduce"):
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL


def test_a_stage_is_told_of_its_slots_and_its_gpu(monkeypatch):
    given = []
    monkeypatch.setattr(pipeline, "attempt", lambda _name, _session, work: work(lambda _: None))
    monkeypatch.setattr(pipeline, "run", lambda *_, environment, **__: given.append(environment))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    pipeline.run_stage.fn(STAGE, Session(LiveView(1), slots=3))
    assert (given[0][SLOTS], given[0]["CUDA_VISIBLE_DEVICES"]) == ("3", "0")


def test_a_pause_before_another_attempt_is_not_computing():
    view = LiveView(1)
    view.on_event("distill", {"event": "computing"})
    view.paused("distill")
    computed = view.computing_seconds
    view.finished("distill")
    assert view.computing_seconds == computed > 0
