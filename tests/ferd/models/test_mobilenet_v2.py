"""The depthwise convolution, in float32 where bfloat16 is slow on a CPU."""

import pytest
import torch
import torch.nn.functional as F

from ferd.models.mobilenet_v2 import Depthwise


@pytest.fixture
def inputs(rng):
    return torch.randn(2, 6, 8, 8, generator=rng)


@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_a_convolution_of_each_channel_by_itself(inputs, stride):
    layer = Depthwise(6, stride)
    apart = [F.conv2d(inputs[:, [row]], layer.weight[[row]], stride=stride, padding=1) for row in range(6)]
    torch.testing.assert_close(layer(inputs), torch.cat(apart, 1))
    assert layer.bias is None


def test_at_stride_2_bfloat16_features_are_summed_in_float32(inputs):
    layer, features = Depthwise(6, 2).bfloat16(), inputs.bfloat16().requires_grad_()
    out = layer(features)
    exact = F.conv2d(features.detach().double(), layer.weight.double(), stride=2, padding=1, groups=6)
    assert out.dtype == torch.bfloat16 and torch.equal(out, exact.bfloat16())
    (gradient,) = torch.autograd.grad(out.sum(), features)
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize(("stride", "dtype"), [(1, torch.bfloat16), (2, torch.float32)])
def test_under_autocast_stride_2_stays_float32(inputs, stride, dtype):
    with torch.autocast("cpu", torch.bfloat16):
        assert Depthwise(6, stride)(inputs).dtype == dtype
