import pytest
import torch
from torch import nn

from ferd.models.generator import Generator


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (3, 64)])
def test_images_have_the_shape_asked_for_and_lie_in_the_unit_interval(channels, size, rng):
    images = Generator(20, channels, size)(50 * torch.randn(3, 20, generator=rng))
    assert images.shape == (3, channels, size, size)
    assert images.min() >= 0 and images.max() <= 1
    assert images.std() > 0.01


def test_a_size_that_two_upsamplings_cannot_reach_is_refused():
    with pytest.raises(ValueError, match="30 is not a multiple of 4"):
        Generator(20, 3, 30)


def test_reinitialised_weights_depend_on_the_generator_of_random_numbers_alone():
    generators = [Generator(20, 1, 8) for _ in range(2)]
    generators[0](torch.randn(8, 20, generator=torch.Generator().manual_seed(0)))
    states = []
    for generator in generators:
        generator.reinitialise(torch.Generator().manual_seed(4))
        states.append({key: value.clone() for key, value in generator.state_dict().items()})
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    generators[0].reinitialise(torch.Generator().manual_seed(5))
    assert not torch.equal(generators[0].linear.weight, states[0]["linear.weight"])


def test_reinitialising_resets_running_statistics(rng):
    generator = Generator(20, 1, 8).train()
    norms = [layer for layer in generator.modules() if isinstance(layer, nn.BatchNorm2d)]
    generator(torch.randn(8, 20, generator=rng) * 5)
    assert all(layer.num_batches_tracked == 1 for layer in norms)
    assert all(layer.running_mean.abs().max() > 0 for layer in norms)
    generator.reinitialise(rng)
    for layer in norms:
        assert layer.num_batches_tracked == 0
        assert (layer.running_mean == 0).all() and (layer.running_var == 1).all()


def test_reinitialised_weights_are_normal_of_deviation_0_02(rng):
    generator = Generator(100, 3, 32)
    generator.reinitialise(rng)
    for layer in generator.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.numel() > 10_000:
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
            assert abs(layer.weight.mean().item()) < 0.001
            assert (layer.bias == 0).all()


def test_every_weight_takes_a_gradient(rng):
    generator = Generator(20, 1, 8)
    generator.reinitialise(rng)
    images = generator(torch.randn(4, 20, generator=rng))
    (images * torch.rand(images.shape, generator=rng)).sum().backward()
    assert all(weight.grad is not None for weight in generator.parameters())
    assert generator.linear.weight.grad.abs().sum() > 0


def test_reinitialising_draws_the_scales_of_batchnorms_around_1(rng):
    generator = Generator(20, 1, 8)
    generator.reinitialise(rng)
    scales = torch.cat([layer.weight for layer in generator.modules() if isinstance(layer, nn.BatchNorm2d)])
    assert scales.mean().item() == pytest.approx(1, abs=0.01)
    assert 0.01 < scales.std().item() < 0.03
