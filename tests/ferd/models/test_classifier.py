from contextlib import contextmanager

import pytest
import torch

from ferd.errors import FerdError
from ferd.models.classifier import fast_layout, frozen, usable
from ferd.models.folding import Folded
from ferd.models.registry import NETWORKS, build


@pytest.mark.parametrize(("name", "blocks"), [("resnet8-w8", 3), ("resnet18", 8)])
def test_head_after_features_is_forward_at_every_layer(name, blocks, rng):
    network = build(name, classes=7, channels=3).eval()
    inputs = torch.rand(2, 3, 8, 8, generator=rng)
    with torch.no_grad():
        expected = network(inputs)
        for layer in range(-blocks, 0):
            features = network.features(inputs, layer)
            assert torch.allclose(network.head(features, layer), expected, atol=1e-6), layer


@pytest.mark.parametrize("layer", [0, 1, -4])
def test_a_layer_that_does_not_exist_is_refused(layer, images):
    network = build("resnet8-w8", classes=10, channels=1)
    with pytest.raises(FerdError, match=f"layer {layer}: the network has 3 blocks"):
        network.features(images, layer)


def test_features_are_taken_after_an_activation_and_at_the_depth_of_their_layer(rng):
    network = build("resnet8-w8", classes=10, channels=1).eval()
    inputs = torch.rand(2, 1, 8, 8, generator=rng)
    shapes = {-1: (2, 32, 2, 2), -2: (2, 16, 4, 4), -3: (2, 8, 8, 8)}
    for layer, shape in shapes.items():
        features = network.features(inputs, layer)
        assert features.shape == shape
        assert features.min() == 0


def test_the_fast_layout_does_not_change_what_a_network_computes(images):
    network = build("resnet8-w8", classes=10, channels=1).eval()
    before = network(images)
    assert torch.allclose(fast_layout(network, torch.device("cpu"))(images), before, atol=1e-6)


def test_the_small_maps_of_resnet18_are_in_contiguous_order_on_a_cpu_and_its_answers_the_same(rng):
    network = build("resnet18", classes=10, channels=3).eval()
    images = torch.rand(2, 3, 32, 32, generator=rng)
    before = network(images)
    fast_layout(network, torch.device("cpu"))
    assert torch.allclose(network(images), before, atol=1e-5)
    for layer, order in ((-1, torch.contiguous_format), (-3, torch.channels_last)):
        assert network.features(images, layer).is_contiguous(memory_format=order)
        assert network.blocks()[layer].conv2.weight.is_contiguous(memory_format=order)


def test_frozen_networks_are_in_eval_mode_and_take_no_gradient(images, untouched):
    networks = [build("resnet8-w8", classes=10, channels=1, seed=seed) for seed in (0, 1)]
    with untouched(networks[0]), untouched(networks[1]), frozen(*networks):
        for network in networks:
            assert not any(module.training for module in network.modules())
            assert not network(images).requires_grad


def test_frozen_puts_back_mixed_modes_and_gradients_even_after_an_error(untouched):
    network = build("resnet8-w8", classes=10, channels=1).train()
    network.layer1.eval()
    network.linear.bias.requires_grad_(False)
    with untouched(network), pytest.raises(KeyError), frozen(network):
        raise KeyError
    assert network.training and not network.layer1[0].bn1.training


def test_frozen_blocks_nest(untouched):
    network = build("resnet8-w8", classes=10, channels=1).train()
    with untouched(network), frozen(network):
        with frozen(network):
            pass
        assert not network.training
        assert not network.linear.weight.requires_grad


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_a_logit_a_class(name):
    with torch.device("meta"):  # shapes alone: the largest have some hundred MB of weights
        network = build(name, classes=5, channels=3).eval()
        assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert (network.classes, network.channels) == (5, 3)


@pytest.mark.parametrize(
    ("mean", "std"), [([0.5], [0.0]), ([0.5], [float("nan")]), ([0.5, 0.5], [0.2, 0.2]), ([0.5], [0.2, 0.2])]
)
def test_a_normalisation_that_is_none_is_refused(mean, std):
    network = build("resnet8-w8", classes=10, channels=1)
    with pytest.raises(
        FerdError, match=r"^normalisation by mean .* is of 1 channels, and a deviation is positi"
    ):
        network.normalise_by(torch.tensor(mean), torch.tensor(std))
    assert network.input_mean is None


def test_a_normalisation_is_the_networks_own():
    networks = [build("resnet8-w8", classes=10, channels=1) for _ in range(2)]
    mean, std = torch.tensor([0.5]), torch.tensor([0.2])
    for network in networks:
        network.normalise_by(mean, std)
    networks[0].input_mean.fill_(0)
    assert networks[1].input_mean.item() == mean.item() == 0.5


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (lambda: torch.autocast("cpu", torch.bfloat16), "autocast is on"),
        (lambda: default_type(torch.float64), r"torch's default type is torch\.float64"),
        (lambda: torch.device("meta"), "torch's default device is meta"),
    ],
)
def test_modes_of_torch_that_would_override_settings_are_refused(mode, said):
    network = build("resnet8-w8", classes=10, channels=1)
    twin = Folded(network)
    images = torch.rand(2, 1, 8, 8)
    with mode(), pytest.raises(FerdError, match=f"^{said}"):
        fast_layout(network, torch.device("cpu"))
    with mode(), pytest.raises(FerdError, match=f"^{said}"):
        twin.require_following("student", images)


@contextmanager
def default_type(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_in_one_line(device):
    with pytest.raises(FerdError, match=rf"^device '{device}': cannot be used here: [^\n]+; cpu always can$"):
        usable(device)
