import copy
import math

import pytest
import torch

from ferd.bottleneck import (
    Adam,
    channel_variance,
    information,
    information_gradient,
    noise_scales,
    nonrobust_features,
    pooled_noise_gradient,
    pools_and_is_linear,
    robust_channels,
    softplus_and_slope,
    spatial_noise_gradient,
    threshold,
)
from ferd.config import Bottleneck, NonRobust

SETTINGS = Bottleneck(threshold="mean", steps=20, learning_rate=0.1, beta=0.3)
LAST = NonRobust(layer=-1, threshold_over="sample")


def settings(**changes):
    return SETTINGS.model_copy(update=changes)


@pytest.fixture
def double_teacher(teacher):
    return teacher.double()


@pytest.fixture
def features(teacher, images):
    """Scaled so that the mask is neither full nor empty."""
    return 20 * teacher.features(images)


@pytest.fixture
def double_features(double_teacher, images):
    return 20 * double_teacher.features(images.double())


def test_pooling_first_gives_the_gradient_of_noise_added_in_space(
    double_teacher, double_features, labels, rng
):
    noise = torch.randn(16, 32, generator=rng, dtype=torch.float64)
    pooled = pooled_noise_gradient(double_teacher, double_features, labels)
    spatial = spatial_noise_gradient(double_teacher, double_features, labels, -1)
    assert spatial(noise).abs().max() > 1e-3
    assert torch.allclose(pooled(noise), spatial(noise), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("threshold", ["max", "mean"])
def test_pooling_first_gives_the_same_mask(double_teacher, double_features, labels, threshold):
    chosen = settings(threshold=threshold)
    rng = torch.Generator().manual_seed(5)
    mask = robust_channels(double_teacher, double_features, labels, LAST, chosen, rng)
    variance = channel_variance(double_features)
    gradient = spatial_noise_gradient(double_teacher, double_features, labels, -1)
    scales = noise_scales(gradient, variance, chosen, torch.Generator().manual_seed(5))
    limit = variance.max(1).values if threshold == "max" else variance.mean(1)
    assert torch.equal(mask, scales**2 > limit[:, None])
    assert 0 < mask.double().mean() < 1


def test_a_head_of_its_own_is_differentiated_as_it_is(make_network, images, labels):
    """One that scales its logits by 3 is the usual one with three times the weights."""
    usual = make_network().requires_grad_(False).double()
    usual.linear.bias.zero_()
    own = copy.deepcopy(usual)
    features = 20 * usual.features(images.double())
    usual.linear.weight.mul_(3)

    class Scaled(type(own)):
        def classify(self, pooled):
            return 3 * super().classify(pooled)

    own.__class__ = Scaled
    masks = [
        robust_channels(net, features, labels, LAST, SETTINGS, torch.Generator().manual_seed(0))
        for net in (own, usual)
    ]
    assert 0 < masks[0].float().mean() < 1
    assert torch.equal(*masks)


def test_a_mask_at_an_earlier_layer_has_its_channels(teacher, images, labels, rng):
    features = teacher.features(images, -2)
    mask = robust_channels(
        teacher, features, labels, NonRobust(layer=-2, threshold_over="sample"), SETTINGS, rng
    )
    assert mask.shape == (16, 16) and mask.dtype == torch.bool


def test_information_gradient_is_that_of_autograd(rng):
    variance = torch.rand(3, 4, generator=rng, dtype=torch.float64)
    scales = torch.rand(3, 4, generator=rng, dtype=torch.float64).add(0.05).requires_grad_()
    variance[0, 0] = 0
    (expected,) = torch.autograd.grad(information(scales, variance), scales)
    got = information_gradient(scales.detach(), variance)
    assert torch.allclose(got, expected, rtol=1e-10)


def test_adam_is_torchs_own_to_the_bit(rng):
    expected, got = torch.zeros(3, 5), torch.zeros(3, 5)
    reference, ours = torch.optim.Adam([expected], 0.1), Adam(got, 0.1)
    for _ in range(20):
        expected.grad = torch.randn(3, 5, generator=rng)
        reference.step()
        ours.step(expected.grad)
    assert torch.equal(got, expected) and got.abs().min() > 0


def test_softplus_and_its_slope():
    raw = torch.tensor([-20.0, -3.0, 0.0, 2.5, 79.0], dtype=torch.float64)
    scales, slope = softplus_and_slope(raw)
    assert torch.allclose(scales, torch.nn.functional.softplus(raw, threshold=100), rtol=1e-7)
    assert torch.allclose(slope, raw.sigmoid(), rtol=1e-7)
    scales, slope = softplus_and_slope(torch.tensor([200.0]))
    assert scales.item() == pytest.approx(80.0) and slope.item() == 1


def test_information_literal():
    two = information(torch.ones(1, 2), torch.tensor([[1.0, 2.0]])).item()
    assert two == pytest.approx(0.5 * 0.5 * (1 - math.log(2)), rel=1e-5)


def test_without_a_label_to_lose_the_noise_settles_at_the_variance(rng):
    variance = torch.tensor([[0.25, 1.0, 2.0]], dtype=torch.float64)
    long = settings(steps=1500, learning_rate=0.02)
    scales = noise_scales(torch.zeros_like, variance, long, rng)
    assert torch.allclose(scales**2, variance, rtol=1e-3)


def test_beta_weighs_the_information_against_the_label(rng):
    channels, slope = 2000, 1 / 2000  # the loss of noise n is slope/2 times n squared

    def gradient(noise):
        return slope * noise

    long = settings(steps=1500, learning_rate=0.01, beta=0.3)
    variance = torch.ones(1, channels, dtype=torch.float64)
    scales = noise_scales(gradient, variance, long, rng)
    expected = (-0.3 + math.sqrt(0.3**2 + 4 * 0.3)) / 2  # of u = λ²: u² + β·(u − v) = 0
    assert scales.square().mean().item() == pytest.approx(expected, rel=0.05)


def test_channel_variance_is_the_biased_one_over_space(rng):
    features = torch.tensor([[[0.0, 2.0], [4.0, 6.0]], [[1.0, 1.0], [1.0, 1.0]]]).unsqueeze(0)
    assert channel_variance(features).tolist() == [[5.0, 0.0]]
    far_from_zero = (1000 + torch.rand(3, 8, 4, 4, generator=rng)).to(memory_format=torch.channels_last)
    assert torch.allclose(
        channel_variance(far_from_zero), far_from_zero.double().var((2, 3), correction=0).float(), rtol=1e-3
    )


def test_the_scales_are_those_of_torchs_adam_on_the_loss_itself():
    variance = torch.tensor([[0.25, 1.0, 2.0]], dtype=torch.float64)
    raw, rng = torch.zeros_like(variance, requires_grad=True), torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam([raw], SETTINGS.learning_rate)
    for _ in range(SETTINGS.steps):
        scales = torch.nn.functional.softplus(raw)
        noise = scales * torch.empty_like(variance).normal_(generator=rng)
        optimiser.zero_grad()
        (0.05 * noise.square().sum() + SETTINGS.beta * information(scales, variance)).backward()
        optimiser.step()
    found = noise_scales(lambda noise: 0.1 * noise, variance, SETTINGS, torch.Generator().manual_seed(1))
    assert torch.allclose(found, torch.nn.functional.softplus(raw), rtol=1e-6)


def test_a_channel_that_the_label_needs_bears_less_noise(rng):
    variance = torch.ones(1, 2)

    def first_channel_matters(noise):
        return torch.tensor([[20.0, 0.0]]) * noise

    scales = noise_scales(first_channel_matters, variance, settings(steps=100), rng)
    assert scales[0, 0] < 0.5 * scales[0, 1]


def test_channels_constant_over_space_give_no_nan(teacher, features, labels, rng):
    features[:, ::2] = 0
    assert (channel_variance(features)[:, ::2] == 0).all()
    long = settings(steps=200)
    gradient = pooled_noise_gradient(teacher, features, labels)
    scales = noise_scales(gradient, channel_variance(features), long, rng)
    assert scales.isfinite().all()
    assert information(scales, channel_variance(features)).isfinite()
    mask = robust_channels(teacher, features, labels, LAST, long, rng)
    assert 0 < mask.float().mean() < 1


def test_the_largest_variance_as_threshold_is_stricter_than_the_mean(teacher, features, labels):
    masks = {
        name: robust_channels(
            teacher, features, labels, LAST, settings(threshold=name), torch.Generator().manual_seed(0)
        )
        for name in ("max", "mean")
    }
    assert (masks["mean"] | ~masks["max"]).all()
    assert masks["mean"].sum() > masks["max"].sum()


def test_the_threshold_over_a_batch_is_one_number_and_over_samples_one_each():
    variance = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    batch = NonRobust(layer=-1, threshold_over="batch")
    assert threshold(variance, LAST, settings(threshold="max")).tolist() == [[3.0], [7.0]]
    assert threshold(variance, LAST, settings(threshold="mean")).tolist() == [[2.0], [6.0]]
    assert threshold(variance, batch, settings(threshold="max")).tolist() == [[7.0]]
    assert threshold(variance, batch, settings(threshold="mean")).tolist() == [[4.0]]


def test_nonrobust_features_zero_exactly_the_robust_channels(rng):
    features = torch.rand(2, 3, 4, 4, generator=rng) + 0.1
    robust = torch.tensor([[True, False, False], [False, True, True]])
    kept = nonrobust_features(features, robust)
    assert (kept[robust] == 0).all()
    assert torch.equal(kept[~robust], features[~robust])


def test_the_mask_is_a_constant_and_its_loop_leaves_no_gradient(teacher, images, labels, rng):
    inputs = images.clone().requires_grad_()
    features = teacher.features(inputs)
    mask = robust_channels(teacher, features, labels, LAST, SETTINGS, rng)
    assert not mask.requires_grad
    assert inputs.grad is None
    assert all(weight.grad is None for weight in teacher.parameters())
    other = robust_channels(teacher, features.detach(), labels, LAST, SETTINGS, rng.manual_seed(0))
    assert torch.equal(mask, other)


class Cosine(torch.nn.Linear):
    """Looks like a linear layer, and is none."""

    def forward(self, inputs):
        return torch.nn.functional.linear(inputs, torch.nn.functional.normalize(self.weight))


def test_a_head_of_another_kind_of_layer_has_no_closed_form(make_network):
    network = make_network().eval()
    assert pools_and_is_linear(network)
    network.linear = Cosine(network.linear.in_features, 10)
    assert not pools_and_is_linear(network)
    network.linear = torch.nn.Sequential(network.linear, torch.nn.ReLU())
    assert not pools_and_is_linear(network)
