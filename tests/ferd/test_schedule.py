import pytest
import torch

from ferd.schedule import set_cosine_rate


@pytest.mark.parametrize(("done", "rate"), [(0, 0.2), (1 / 3, 0.15), (0.5, 0.1), (1, 0.0)])
def test_the_rate_falls_along_half_a_cosine_in_every_group(done, rate):
    groups = [{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 3.0}]
    optimiser = torch.optim.SGD(groups, lr=7.0)
    assert set_cosine_rate(optimiser, 0.2, done) == pytest.approx(rate)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([rate, rate])


@pytest.mark.parametrize(
    ("done", "rate"), [(0, 0.0), (0.025, 0.0998459), (0.05, 0.1987688), (0.5, 0.1), (1, 0.0)]
)
def test_a_warm_up_rises_linearly_to_the_cosine(done, rate):
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=7.0)
    assert set_cosine_rate(optimiser, 0.2, done, warm_up=0.05) == pytest.approx(rate, rel=1e-6)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-6)
