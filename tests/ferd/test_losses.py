import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ferd.errors import FerdError
from ferd.losses import (
    BatchNormStatistics,
    ClassPrior,
    _ChannelMoments,
    ikl,
    kl_divergence,
    kl_from_uniform,
    soft_cross_entropy,
    weighted_mse,
)

LN3 = math.log(3)


@pytest.fixture
def logits():
    source = torch.Generator().manual_seed(3)
    return [torch.randn(6, 7, generator=source, dtype=torch.float64) for _ in range(3)]


def test_weighted_mse_is_the_double_sum_over_pairs_of_classes(logits):
    teacher, student, raw = logits
    weights, difference = raw.softmax(1), teacher - student
    pairs = (difference[:, :, None] - difference[:, None, :]).square()
    products = weights[:, :, None] * weights[:, None, :]
    expected = 0.25 * (products * pairs).sum((1, 2))
    assert torch.allclose(weighted_mse(teacher, student, weights), expected, rtol=1e-12)


def test_weighted_mse_ignores_a_constant_shift_of_the_logits(logits):
    teacher, student, raw = logits
    weights = raw.softmax(1)
    shifted = weighted_mse(teacher + 5, student - 2, weights)
    assert torch.allclose(shifted, weighted_mse(teacher, student, weights), rtol=1e-9)


def test_ikl_literal_value():
    teacher, student = torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2)
    value = ikl(teacher, student, torch.full((1, 2), 0.5))
    assert value.item() == pytest.approx(LN3**2 / 8 + math.log(2), rel=1e-6)


def test_ikl_gradient_by_the_student_passes_gradcheck(logits):
    teacher, student, raw = logits
    weights = raw.softmax(1)
    assert torch.autograd.gradcheck(lambda s: ikl(teacher, s, weights), student.requires_grad_())


def test_ikl_gradient_by_the_teacher_is_that_of_weighted_mse_alone(logits):
    teacher, student, raw = logits
    weights = raw.softmax(1)
    teacher.requires_grad_()
    (gradient,) = torch.autograd.grad(ikl(teacher, student, weights).sum(), teacher)
    difference = teacher.detach() - student
    expected = weights * (difference - (weights * difference).sum(1, keepdim=True))
    assert torch.allclose(gradient, expected, rtol=1e-10)


def test_a_one_hot_prior_makes_weighted_mse_zero(logits):
    teacher, student, _ = logits
    one_hot = torch.eye(7, dtype=torch.float64)[:6]
    assert weighted_mse(teacher, student, one_hot).abs().max() == 0
    uniform = torch.full((6, 7), 1 / 7, dtype=torch.float64)
    assert weighted_mse(teacher, student, uniform).min() > 0.01


def test_class_prior_is_the_mean_over_all_batches_the_current_one_included():
    prior = ClassPrior(2, torch.device("cpu"))
    prior.update(torch.tensor([[0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1]))
    assert torch.allclose(prior.weights(torch.tensor([0])), torch.tensor([[0.8, 0.2]]))
    prior.update(torch.tensor([[0.6, 0.4], [0.1, 0.9]]), torch.tensor([0, 0]))
    weights = prior.weights(torch.tensor([0, 1]))
    assert torch.allclose(weights, torch.tensor([[0.5, 0.5], [0.3, 0.7]]))


def test_class_prior_of_a_soft_teacher_is_not_one_hot():
    prior = ClassPrior(2, torch.device("cpu"))
    prior.update(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1]))
    weights = prior.weights(torch.tensor([0, 1]))
    assert weights.max() < 0.95
    assert torch.allclose(weights.sum(1), torch.ones(2))


def test_class_prior_loses_nothing_where_float32_would():
    prior = ClassPrior(2, torch.device("cpu"))
    prior.sums += 2**24
    prior.counts += 2**25
    for _ in range(2**5):
        prior.update(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
    assert prior.sums[0].tolist() == [2**24 + 2**4] * 2
    assert prior.counts.tolist() == [2**25 + 2**5, 2**25]
    assert prior.weights(torch.tensor([0])).dtype == torch.float32


def test_class_prior_keeps_no_gradient():
    prior = ClassPrior(2, torch.device("cpu"))
    prior.update(torch.zeros(2, 2, requires_grad=True).softmax(1), torch.tensor([0, 1]))
    assert not prior.weights(torch.tensor([0])).requires_grad


def test_kl_from_uniform_is_zero_on_equal_logits_only():
    assert kl_from_uniform(torch.full((1, 5), 3.0)).item() == pytest.approx(0, abs=1e-6)
    expected = math.log(2) - 0.5 * LN3  # -log 2 - (log 3/4 + log 1/4) / 2
    assert kl_from_uniform(torch.tensor([[LN3, 0.0]])).item() == pytest.approx(expected, rel=1e-5)


def test_kl_divergence_literal_value_with_a_zero_in_the_target():
    value = kl_divergence(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[LN3, 0.0]] * 2))
    expected = torch.tensor([math.log(4 / 3), math.log(2) - 0.5 * LN3])
    assert torch.allclose(value, expected, atol=1e-6)


def test_soft_cross_entropy_is_kl_divergence_plus_the_entropy_of_the_target(logits):
    teacher, student, _ = logits
    probs = teacher.softmax(1)
    entropy = torch.distributions.Categorical(probs).entropy()
    expected = kl_divergence(probs, student) + entropy
    assert torch.allclose(soft_cross_entropy(probs, student), expected, rtol=1e-10)


def test_bn_loss_is_zero_where_batch_moments_equal_the_running_ones(rng):
    layers = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)).double().eval()
    inputs = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=rng)
    flat = inputs.movedim(1, 0).flatten(1)
    layers[0].running_mean, layers[0].running_var = flat.mean(1), flat.var(1, correction=0)
    hidden = layers[:2](inputs).detach().movedim(1, 0).flatten(1)
    layers[2].running_mean, layers[2].running_var = hidden.mean(1), hidden.var(1, correction=0)
    with BatchNormStatistics(layers) as statistics:
        layers(inputs)
        assert statistics.loss().item() == pytest.approx(0, abs=1e-12)
        layers(2 * inputs)
        assert statistics.loss().item() > 0.1


def test_bn_loss_literal_value_and_sum_over_layers():
    layer = nn.BatchNorm2d(2).eval()  # running mean 0, variance 1
    inputs = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(2, 2, 3, 3)
    with BatchNormStatistics(layer) as statistics:
        layer(inputs)
        assert statistics.loss().item() == pytest.approx(5 + math.sqrt(2))
        layer(inputs)
        layer(inputs)
        assert statistics.loss().item() == pytest.approx(2 * (5 + math.sqrt(2)))


def test_bn_loss_has_a_gradient_by_the_input():
    layer = nn.BatchNorm2d(1).eval()
    inputs = torch.full((1, 1, 2, 2), 3.0, requires_grad=True)
    with BatchNormStatistics(layer) as statistics:
        layer(inputs)
        statistics.loss().backward()
    assert torch.allclose(inputs.grad, torch.full((1, 1, 2, 2), 0.25))  # of |mean|


def test_the_gradient_of_channel_moments_in_one_pass_is_that_of_autograd(rng):
    """The pass of a GPU alone, given what that would have kept."""
    inputs = torch.randn(4, 3, 5, 6, dtype=torch.float64, generator=rng).add(2).requires_grad_()
    var, mean = torch.var_mean(inputs, (0, 2, 3), correction=0)
    gradients = torch.randn(2, 3, dtype=torch.float64, generator=rng).unbind()
    (expected,) = torch.autograd.grad((mean, var), inputs, gradients)
    kept = SimpleNamespace(saved_tensors=(inputs.detach(), mean.detach()))
    torch.testing.assert_close(_ChannelMoments.backward(kept, *gradients), expected)


def test_bn_hooks_are_gone_after_the_block_even_when_it_raises():
    layers = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1))
    with pytest.raises(KeyError), BatchNormStatistics(layers):
        assert all(layer._forward_pre_hooks for layer in layers)
        raise KeyError
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_paused_forward_passes_do_not_count():
    layer = nn.BatchNorm2d(1).eval()
    with BatchNormStatistics(layer) as statistics:
        layer(torch.full((1, 1, 2, 2), 2.0))
        with statistics.paused():
            layer(torch.full((1, 1, 2, 2), 9.0))
        assert statistics.loss().item() == pytest.approx(2 + 1)
        layer(torch.full((1, 1, 2, 2), 4.0))
        assert statistics.loss().item() == pytest.approx(4 + 1)


def test_a_network_without_batch_norm_is_one_line():
    with pytest.raises(FerdError, match="no BatchNorm layer"):
        BatchNormStatistics(torch.nn.Conv2d(1, 1, 1))


def test_a_synchronised_batchnorm_counts_as_one(teacher, images):
    losses = []
    for network in (teacher, torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(teacher))):
        with BatchNormStatistics(network) as statistics:
            network(images)
            losses.append(statistics.loss().item())
    assert losses[0] == losses[1] > 0


def test_batchnorms_that_take_no_part_are_told():
    statistics = BatchNormStatistics(torch.nn.BatchNorm2d(1))
    with statistics, pytest.raises(FerdError, match="uses none of its BatchNorm layers"):
        statistics.loss()
