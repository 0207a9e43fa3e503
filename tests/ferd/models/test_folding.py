"""The twin in which attacks run is the same function as the network."""

import pytest
import torch
from torch import nn

from ferd.attacks import cross_entropy, pgd, random_start
from ferd.models.folding import Folded, attack_dtype
from ferd.pixels import to_float

CPU = torch.device("cpu")


def test_the_twin_has_the_logits_and_the_input_gradient_of_the_network(teacher, images):
    twin = Folded(teacher).network
    inputs = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(teacher(inputs).square().sum(), inputs)
    (got,) = torch.autograd.grad(twin(inputs).square().sum(), inputs)
    assert torch.allclose(twin(images), teacher(images), atol=1e-5)
    assert torch.cosine_similarity(got.flatten(), expected.flatten(), 0) > 0.9999


def test_no_batch_norm_is_left_in_a_residual_network(teacher, untouched):
    with untouched(teacher):
        twin = Folded(teacher).network
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in teacher.modules()) == 9


def test_the_twin_follows_weights_and_running_statistics_when_told_to(make_network, images):
    network = make_network()
    folded = Folded(network)
    before = folded.network(images)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.1)
        network.bn1.running_mean.add_(0.1)
    assert torch.equal(folded.network(images), before)
    folded.refresh()
    assert not torch.allclose(folded.network(images), before, atol=1e-3)
    assert torch.allclose(folded.network(images), network(images), atol=1e-4)


def test_attacks_in_bfloat16_are_no_weaker_judged_by_the_network_itself(trained, digits, threat):
    data = digits["train"]
    inputs, labels = to_float(data.images[:400]), data.labels[:400]
    accuracy = {}
    for dtype in (torch.float32, torch.bfloat16):
        twin = Folded(trained, dtype).network
        assert twin(inputs[:2]).dtype == torch.float32
        start = random_start(inputs, threat.epsilon, torch.Generator().manual_seed(0))
        adv_inputs = pgd(twin, inputs, cross_entropy(labels), threat, start)
        accuracy[dtype] = (trained(adv_inputs).argmax(1) == labels).float().mean().item()
    assert accuracy[torch.bfloat16] <= accuracy[torch.float32] + 0.02
    assert accuracy[torch.float32] < (trained(inputs).argmax(1) == labels).float().mean()


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", torch.float32), ("bf16-attacks", torch.bfloat16), ("bf16", torch.bfloat16)],
)
def test_precision_names_the_type_of_attacks(precision, dtype):
    assert attack_dtype(precision, CPU) is dtype


def test_a_convolution_with_a_bias_is_folded_too(make_network, images):
    network = make_network().requires_grad_(False)
    plain = network.conv1
    network.conv1 = nn.Conv2d(1, plain.out_channels, 3, padding=1)
    network.conv1.weight.data, network.conv1.bias.data = plain.weight.data, torch.linspace(-1, 1, 8)
    assert torch.allclose(Folded(network).network(images), network(images), atol=1e-5)
