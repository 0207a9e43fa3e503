"""The account of time: orchestration is what is left when the stages' computing is taken away."""

import pytest

from flows import progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_overlapping_stages_count_once(clock):
    view = progress.LiveView(total=2)
    for second, stage, event in [
        (1.0, "a", "computing"),
        (2.0, "a", "measured"),
        (3.0, "b", "computing"),
        (5.0, "a", "computed"),
        (9.0, "b", "computed"),
        (20.0, "c", "computing"),
        (21.0, "c", "error"),
    ]:
        clock[0] = second
        view.on_event(stage, {"event": event})
    assert view.computing_seconds == 8.0 + 1.0


def test_plain_lines_are_few(clock, capsys):
    view = progress.LiveView(total=1)
    for done in range(1, 41):
        clock[0] = float(done)
        view.on_event(
            "stage",
            {"event": "progress", "done": done, "total": 40, "seconds_left": 40 - done, "unit": "round"},
        )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "stage: round 10 of 40, 30 s left"
    assert len(lines) == 4


def test_time_counts_since_the_process_began_or_as_it_is_told(monkeypatch):
    monkeypatch.setattr(progress.time, "time", lambda: 1_000.0)
    monkeypatch.setattr(progress.psutil.Process, "create_time", lambda _: 900.0)
    assert progress.LiveView(total=1).wall_seconds == 100
    assert progress.LiveView(total=1, began=990.0).wall_seconds == 10


def test_the_last_figures_stand_at_the_end_of_a_line(clock, capsys):
    view = progress.LiveView(total=1)
    clock[0] = 20.0
    event = {"event": "progress", "done": 1, "total": 4, "seconds_left": 9, "agreement": 0.98437, "kl": 12.0}
    view.on_event("stage", event)
    assert capsys.readouterr().out == "stage: step 1 of 4, 9 s left, agreement 0.984, kl 12\n"
