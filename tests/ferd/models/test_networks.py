"""The paper's networks: the field's parameter counts and key names, one seam."""

import pytest
import torch

from ferd.models.folding import Folded
from ferd.models.registry import NETWORKS, build
from ferd.models.resnet import Shortcut

COUNTS = {
    "resnet18": 11_173_962,
    "wrn-34-10": 46_160_474,
    "wrn-16-4": 2_748_890,
    "mobilenet_v2": 2_296_922,
}
SMALL = ["resnet20-w16", "wrn-16-1", "mobilenet_v2", "preact_resnet18"]


@pytest.mark.parametrize("name", COUNTS)
def test_networks_have_the_parameters_of_the_usual_versions(name):
    with torch.device("meta"):
        network = NETWORKS[name](classes=10, channels=3)
    assert sum(weight.numel() for weight in network.parameters()) == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("wrn-16-4", ["block1.layer.0.convShortcut.weight", "bn1.bias", "fc.bias"]),
        ("preact_resnet18", ["layer2.0.shortcut.0.weight", "bn.bias", "linear.bias"]),
        ("mobilenet_v2", ["layers.0.shortcut.1.weight", "conv2.weight", "bn2.bias"]),
    ],
)
def test_weights_have_the_usual_names(name, keys):
    with torch.device("meta"):
        state = NETWORKS[name](classes=10, channels=3).state_dict()
    assert set(keys) <= set(state)
    assert not any(key.startswith("_") for key in state)


@pytest.fixture(scope="module", params=SMALL)
def network(request):
    """With running statistics and scales that differ from those of a new network."""
    network = build(request.param, classes=7, channels=3)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        network.train()(torch.rand(4, 3, 32, 32, generator=source))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=source)
                module.bias.uniform_(-0.2, 0.2, generator=source)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("layer", [-1, -2, -4])
def test_the_head_on_the_features_of_a_layer_is_the_network(network, layer):
    inputs = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    logits = network(inputs)
    assert logits.shape == (2, 7)
    assert torch.allclose(network.head(network.features(inputs, layer), layer), logits, atol=1e-5)


def test_the_last_features_are_behind_their_activation(network):
    features = network.features(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    assert features.shape[1] == network.linear.in_features
    assert features.min() == 0 and features.max() > 0


def test_the_twin_is_the_same_function(network):
    inputs = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(Folded(network).network(inputs), network(inputs), atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (128, 32), (32, 128)])
def test_large_images_have_the_gradient_of_a_strided_shortcut_without_its_stride(size):
    """Where few channels come last, oneDNN's own writes beyond its memory for maps of 48×48 and more."""
    shortcut = Shortcut(8, 16, 1, 2, bias=False).to(memory_format=torch.channels_last)
    inputs = torch.rand(8, 8, *size, generator=torch.Generator().manual_seed(0))
    weight = shortcut.weight.detach().double().requires_grad_()
    torch.conv2d(inputs.double(), weight, stride=2).square().sum().backward()
    for _ in range(8):
        shortcut.zero_grad()
        shortcut(inputs.contiguous(memory_format=torch.channels_last)).square().sum().backward()
    assert torch.allclose(shortcut.weight.grad.double(), weight.grad, rtol=1e-4)


def test_preact_resnet_takes_images_of_64():
    network = build("preact_resnet18", classes=200, channels=3).eval()
    assert network(torch.rand(1, 3, 64, 64)).shape == (1, 200)
    assert network.features(torch.rand(1, 3, 64, 64)).shape == (1, 512, 8, 8)
