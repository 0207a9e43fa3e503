"""How many processes start up beside those that compute."""

import threading

import pytest

from flows.pipeline import Session
from flows.progress import LiveView

SOON = 0.2


@pytest.fixture
def session():
    return Session(LiveView(3), slots=1)


def waiting(session):
    """Another process that asks for room; it is set when there is some."""
    entered, leave = threading.Event(), threading.Event()

    def start():
        with session.room():
            entered.set()
            leave.wait(10)

    threading.Thread(target=start, daemon=True).start()
    return entered, leave


def test_the_next_starts_up_when_one_computes(session):
    seen = []
    with session.room() as watched:
        entered, leave = waiting(session)
        tell = watched(seen.append)
        tell({"event": "progress"})
        assert not entered.wait(SOON)
        tell({"event": "computing"})
        assert entered.wait(10)
        tell({"event": "computing"})  # an attempt that begins again: no second room
    after, _ = waiting(session)
    assert not after.wait(SOON)
    leave.set()
    assert after.wait(10)
    assert [event["event"] for event in seen] == ["progress", "computing", "computing"]


def test_one_that_ends_before_it_computes_gives_its_room_back(session):
    with pytest.raises(RuntimeError), session.room():
        raise RuntimeError
    entered, leave = waiting(session)
    assert entered.wait(10)
    leave.set()


def test_without_slots_one_computes_at_a_time():
    session = Session(LiveView(3), slots=None)
    with session.room() as watched:
        entered, leave = waiting(session)
        watched(lambda _: None)({"event": "computing"})
        assert not entered.wait(SOON)
    assert entered.wait(10)
    leave.set()
