"""GPUs are given out evenly; a mock stands for the machine's count, since CI has none."""

from contextlib import ExitStack

import pytest
import torch

from flows import gpus as flows_gpus
from flows.gpus import Gpus
from tasks import slots


@pytest.fixture
def machine(monkeypatch):
    def with_gpus(count, visible=None):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return Gpus()

    return with_gpus


@pytest.mark.parametrize("count", [0, 1])
def test_where_there_is_no_choice_nothing_is_set(machine, count):
    with machine(count).one() as environment:
        assert environment == {}


@pytest.mark.parametrize(("visible", "names"), [(None, "012"), ("3,5,7", "357")])
def test_each_process_gets_the_least_busy_one(machine, visible, names):
    gpus = machine(3, visible)
    first, second, third = (
        {"CUDA_VISIBLE_DEVICES": name, slots.SHARE: f"{number}/3"} for number, name in enumerate(names)
    )
    with ExitStack() as running:
        assert [running.enter_context(gpus.one()) for _ in range(2)] == [first, second]
        with gpus.one() as environment:
            assert environment == third
        assert running.enter_context(gpus.one()) == third  # free again
        assert running.enter_context(gpus.one()) == first


def test_a_gpu_is_free_again_after_a_failure(machine):
    gpus = machine(2)
    for _ in range(2):
        with pytest.raises(RuntimeError), gpus.one() as environment:
            raise RuntimeError
        assert environment["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize(
    ("count", "driver", "visible", "said"),
    [
        (1, True, None, "1 GPU"),
        (2, True, None, "2 GPUs"),
        (0, True, None, "the CPU: torch cannot use the GPU here"),
        (0, True, "", "the CPU"),
        (0, False, None, "the CPU"),
    ],
)
def test_what_stages_compute_on_is_said(monkeypatch, tmp_path, count, driver, visible, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(flows_gpus, "DRIVER", tmp_path if driver else tmp_path / "none")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert flows_gpus.machine().partition(", see")[0] == said
