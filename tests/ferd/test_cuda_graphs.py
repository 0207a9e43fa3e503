"""Steps recorded on a GPU compute what they compute when they are called; elsewhere they are called."""

import pytest
import torch

from ferd.cuda_graphs import Recorded

CALLS = 8


def test_elsewhere_than_on_a_gpu_each_call_is_a_call(rng):
    seen = []
    double = Recorded(lambda number: seen.append(number) or 2 * number, torch.device("cpu"), rng)
    assert [double(torch.tensor(number)).item() for number in range(5)] == [0, 2, 4, 6, 8]
    assert len(seen) == 5


@pytest.mark.gpu
def test_replays_draw_the_numbers_that_calls_draw():
    gpu = torch.device("cuda")
    calls, rng = (torch.Generator(gpu).manual_seed(3) for _ in range(2))

    def draw(rng, scale):
        return torch.randn(100, generator=rng, device=gpu) * scale

    recorded = Recorded(lambda scale: draw(rng, scale), gpu, rng)
    for number in range(CALLS):
        scale = torch.tensor(float(number), device=gpu)
        assert torch.equal(recorded(scale), draw(calls, scale))
    assert torch.equal(rng.get_state(), calls.get_state())


@pytest.mark.gpu
def test_it_is_called_no_more_once_it_is_recorded_but_for_other_shapes():
    gpu, seen = torch.device("cuda"), []
    rng = torch.Generator(gpu)
    negative = Recorded(lambda values: seen.append(values.shape) or -values, gpu, rng)
    for number in range(CALLS):
        values = torch.full((4,), float(number), device=gpu)
        assert torch.equal(negative(values), -values)
    assert len(seen) == Recorded.WARM_UP + 1
    assert torch.equal(negative(torch.ones(2, device=gpu)), -torch.ones(2, device=gpu))
    assert torch.equal(negative(torch.ones(4, device=gpu)), -torch.ones(4, device=gpu))
    assert len(seen) == Recorded.WARM_UP + 2
