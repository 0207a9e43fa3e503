"""A grid's waiting: what it takes for an outage, and what for an answer."""

import uuid
from types import SimpleNamespace

import httpx
import pytest
from prefect.states import Completed, Crashed, Failed, Running

from ferd.errors import FerdError
from flows import grid, stage
from tasks.stage import Stage
from tests.conftest import run_in

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


def test_a_stage_is_asked_for_as_soon_as_the_server_answers(monkeypatch):
    run = uuid.uuid4()
    answers = iter([httpx.ConnectError("refused"), refused(503), SimpleNamespace(id=run)])
    keys = []

    def deploy(_, *, idempotency_key, **__):
        keys.append(idempotency_key)
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(grid, "POLL_SECONDS", 0)
    monkeypatch.setattr(grid, "run_deployment", deploy)
    assert grid._asked("distill", "abc", "grid/distill/0") == run
    assert keys == ["grid/distill/0"] * 3  # the server makes one run of them


def test_a_worker_is_asked_for_the_commit_that_the_grid_is_at_and_to_share(monkeypatch):
    given = []

    def deploy(_, *, parameters, **__):
        given.append(parameters)
        return SimpleNamespace(id=uuid.UUID(int=1))

    monkeypatch.setattr(grid, "run_deployment", deploy)
    grid._asked("distill", "abc", "grid/distill/0")
    assert given == [{"name": "distill", "share": True, "commit": "abc"}]


def test_a_stage_whose_worker_was_lost_is_asked_for_anew(monkeypatch):
    keys = []
    ends = iter([Crashed(), Crashed(), Completed()])
    monkeypatch.setattr(grid, "_asked", lambda _name, _commit, key: keys.append(key))
    monkeypatch.setattr(grid, "_end_of", lambda *_: next(ends))
    grid.on_a_worker.fn("distill", "abc")
    assert keys == ["/distill/0", "/distill/1", "/distill/2"]


def test_a_stage_that_failed_is_not_asked_for_again(monkeypatch):
    ends = iter([Failed(message="gamma is -1")])
    monkeypatch.setattr(grid, "_asked", lambda *_: None)
    monkeypatch.setattr(grid, "_end_of", lambda *_: next(ends))
    with pytest.raises(FerdError, match="failed on a worker: gamma is -1"):
        grid.on_a_worker.fn("distill", "abc")


CHECKS = ("share.require", "refuse_uncommitted", "say_whether_a_worker_is_there")


@pytest.mark.parametrize("fault", CHECKS)
def test_what_a_grid_cannot_do_is_said_before_anything_is_planned(monkeypatch, fault):
    def refuse():
        raise FerdError(fault)

    for name in CHECKS:
        monkeypatch.setattr(f"flows.grid.{name}", refuse if name == fault else lambda: None)
    monkeypatch.setattr(grid, "Pipeline", lambda: pytest.fail("planned"))
    with pytest.raises(FerdError, match=fault):
        grid.grid.fn()


def test_where_a_stage_fails_the_results_of_the_others_are_taken_all_the_same(monkeypatch):
    upstream = {"teacher": (), "one": ("teacher",), "two": ("teacher",), "here": ()}
    planned, sent, taken = [], [], []

    class Planned:
        def plan(self, targets, *, report=False):
            planned.append((targets, report))
            return [Stage(name, upstream[name], name in ("one", "two"), ("",), ()) for name in upstream]

    for name in CHECKS:
        monkeypatch.setattr(f"flows.grid.{name}", lambda: None)
    monkeypatch.setattr(grid, "Pipeline", Planned)
    monkeypatch.setattr(grid, "evaluations", lambda *_: ["here", "one", "two"])
    monkeypatch.setattr(grid, "head", lambda: "abc")
    monkeypatch.setattr("flows.grid.share.push", sent.append)
    monkeypatch.setattr(grid, "run_stale", lambda *_, pull, **__: taken.append(pull))
    monkeypatch.setattr(
        grid, "in_order", lambda *_: {"one": Completed(), "two": Failed(data=FerdError("no"))}
    )
    with pytest.raises(FerdError, match="two: no"):
        grid.grid.fn()
    assert planned[-1] == (["here", "one"], True) and taken == [True]
    assert sent == [["teacher"]]  # what workers need, and nobody but this folder may have


def test_the_lists_of_code_are_not_sent(monkeypatch):
    """Each worker makes its own, in a second."""
    sent = []
    monkeypatch.setattr("flows.grid.share.push", sent.append)
    grid.send_what_is_here([Stage("one", ("teacher", "sources", "data"), True, ("",), ())])
    grid.send_what_is_here([Stage("two", ("sources",), True, ("",), ())])
    assert sent == [["data", "teacher"]]


@pytest.mark.parametrize("asked", ["", "abc"])
def test_a_worker_at_another_commit_refuses(monkeypatch, asked):
    monkeypatch.setattr(stage, "head", lambda: "def")
    with pytest.raises(FerdError, match="the worker's clone is at commit def"):
        stage.stage.fn("report", commit=asked)


def test_a_worker_whose_code_was_changed_refuses_at_the_right_commit_too(monkeypatch, tmp_path):
    code = tmp_path / "ferd/losses.py"
    code.parent.mkdir()
    code.touch()
    commit = ("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--message", "tiny")
    for command in (("init", "--quiet"), ("add", "--all"), commit):
        assert run_in(tmp_path, "git", *command).returncode == 0
    code.write_text("OTHER = 1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "Pipeline", lambda: pytest.fail("planned"))
    with pytest.raises(FerdError, match=r"ferd/losses\.py changed since the commit"):
        stage.stage.fn("report", commit=stage.head())
