"""A grid's waiting: what it takes for an outage, and what for an answer."""

import uuid
from types import SimpleNamespace

import httpx
import pytest
from prefect.states import Completed, Running

from flows import grid

REQUEST = httpx.Request("GET", "http://127.0.0.1:9/flow_runs")


class Client:
    """Prefect's client as far as the grid asks it: what is listed, one after the other."""

    def __init__(self, *answers):
        self.answers = iter(answers)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read_flow_run(self, _):
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(state=answer)


def refused(status):
    return httpx.HTTPStatusError("no", request=REQUEST, response=httpx.Response(status, request=REQUEST))


def asked(monkeypatch, *answers):
    monkeypatch.setattr(grid, "POLL_SECONDS", 0)
    monkeypatch.setattr(grid, "get_client", lambda **_: Client(*answers))
    return grid._end_of(uuid.uuid4(), "distill")


def test_a_server_that_is_away_for_a_while_fails_no_stage_and_is_told_of_once(monkeypatch, capsys):
    away = httpx.ConnectError("refused"), refused(500), refused(503), httpx.ReadTimeout("late")
    assert asked(monkeypatch, Running(), *away, Running(), Running(), Completed()).is_completed()
    lost, back = capsys.readouterr().out.splitlines()
    assert lost.startswith("distill: the server does not answer") and back.endswith("answers again")


def test_a_server_that_has_no_such_run_is_not_asked_again(monkeypatch):
    with pytest.raises(httpx.HTTPStatusError):
        asked(monkeypatch, Running(), refused(404), Completed())
