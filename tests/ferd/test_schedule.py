import pytest
import torch

from ferd.schedule import set_cosine_rate


@pytest.mark.parametrize(("done", "rate"), [(0, 0.2), (1 / 3, 0.15), (0.5, 0.1), (1, 0.0)])
def test_the_rate_falls_along_half_a_cosine_in_every_group(done, rate):
    groups = [{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 3.0}]
    optimiser = torch.optim.SGD(groups, lr=7.0)
    assert set_cosine_rate(optimiser, 0.2, done) == pytest.approx(rate)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([rate, rate])
