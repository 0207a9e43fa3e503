"""What benchmarks/results.json holds, and how calls are measured in turn."""

import json

import pytest
import torch

from benchmarks.measure import in_turn
from benchmarks.speed import KEY, RESULTS, keep
from benchmarks.steps import GPU_SIZES, GPU_STEPS, SIZES, STEPS


def test_a_row_is_of_a_known_step_and_precision_and_its_ratio_is_that_of_its_times():
    rows = json.loads(RESULTS.read_text())
    assert len({tuple(row.get(key) for key in KEY) for row in rows}) == len(rows) > 0
    for row in rows:
        sizes, steps = (GPU_SIZES, GPU_STEPS) if "convolutions" in row else (SIZES, STEPS)
        assert row["precision"] in steps[row["step"]].precisions
        assert row["size"] in {size.name for size in sizes}
        ratio = row["reference_ms"] / row["ours_ms"]
        rounding = 0.005 + 0.05 * (1 + ratio) / row["ours_ms"]  # of the ratio and of both times
        assert abs(row["ratio"] - ratio) <= rounding + 1e-9


@pytest.fixture
def results(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    monkeypatch.setattr("benchmarks.speed.RESULTS", file)
    return lambda: json.loads(file.read_text())


def test_a_row_takes_the_place_of_that_of_the_same_hardware_alone(results):
    old, other = ({"hardware": name, "step": "pgd20", "size": "8×8", "precision": "float32"} for name in "AB")
    keep([old, other])
    keep([old | {"ratio": 2.0}])
    assert results() == [old | {"ratio": 2.0}, other]


def test_calls_take_turns_and_their_medians_are_of_the_processor(monkeypatch):
    """By a clock that each call moves on: 5, 1 and 3 s, after a call to warm up."""
    now, order = [0.0], []
    monkeypatch.setattr("benchmarks.measure.time.process_time", lambda: now[0])

    def call_of(name, seconds):
        def call():
            order.append(name)
            now[0] += next(seconds)

        return call

    calls = [call_of("A", iter([90, 5, 1, 3])), call_of("B", iter([90, 20, 20, 70]))]
    measured = in_turn(calls, repeats=3, device=torch.device("cpu"))
    assert order == ["A", "B"] * 4
    assert [figure.milliseconds for figure in measured] == [3000, 20_000]
