"""The twin in which attacks run is the same function as the network."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from ferd.attacks import cross_entropy, pgd, random_start
from ferd.errors import FerdError
from ferd.models.folding import Folded, attack_dtype, attackable
from ferd.models.resnet import BasicBlock
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


def test_weights_that_are_computed_from_others_stay_as_they_are(trained, images):
    """Copied over, what is folded in would be lost without a word, and attacks blind."""
    expected = trained(images)
    network = copy.deepcopy(trained)
    weight_norm(network.layer2[0].conv1)
    twin = attackable(network, "network", (1, 8, 8), CPU)
    assert torch.allclose(twin.network(images), expected, atol=1e-4)
    with torch.no_grad():
        network.layer2[0].conv1.parametrizations.weight.original0.mul_(2)
    twin.refresh()
    assert torch.allclose(twin.network(images), network(images), atol=1e-4)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.BatchNorm2d(8, affine=False)])
def test_other_normalisations_stay_as_they_are(make_network, images, norm):
    network = make_network().eval()
    network.layer1[0].bn1 = norm
    twin = attackable(network, "network", (1, 8, 8), CPU)
    assert torch.allclose(twin.network(images), network(images), atol=1e-5)


class ActivatedFirst(BasicBlock):
    """Inherits ``folds``, though there is a SiLU between its convolution and its BatchNorm."""

    def forward(self, inputs):
        return F.relu(self.bn2(self.conv2(self.bn1(F.silu(self.conv1(inputs))))) + self.shortcut(inputs))


def test_a_twin_that_is_another_function_is_refused_even_before_training(make_network):
    network = make_network()
    network.layer1[0] = ActivatedFirst(8, 8, 1)
    with pytest.raises(
        FerdError, match=r"^student: its twin for attacks, .* take out of `folds` what is not"
    ):
        attackable(network, "student", (1, 8, 8), CPU)


def test_images_of_other_channels_are_refused(teacher):
    with pytest.raises(FerdError, match=r"not the 3 of the images \(N, channels, H, W\)$"):
        attackable(teacher, "network", (3, 8, 8), CPU)


class RunningMaximum(nn.Module):
    """Divides by a running maximum: a buffer that is put anew, and is no part of the state dict."""

    def __init__(self):
        super().__init__()
        self.register_buffer("maximum", torch.ones(()), persistent=False)

    def forward(self, inputs):
        if self.training:
            self.maximum = 0.9 * self.maximum + 0.3 * inputs.detach().abs().max()
        return inputs / self.maximum


def test_the_twin_follows_a_buffer_that_is_replaced_and_weights_that_are_assigned(make_network, images):
    network, other = make_network(), make_network(seed=1)
    network.linear = nn.Sequential(network.linear, RunningMaximum())
    folded = Folded(network)
    network.train()(20 * images)
    network.eval()
    folded.refresh()
    assert network.linear[1].maximum > 1.5
    assert torch.allclose(folded.network(images), network(images), atol=1e-5)
    other.linear = nn.Sequential(other.linear, RunningMaximum())
    network.load_state_dict(other.state_dict(), assign=True)
    folded.refresh()
    assert torch.allclose(folded.network(images), network(images), atol=1e-5)


def test_another_number_of_logits_than_of_classes_is_refused(make_network):
    network = make_network()
    network.linear = nn.Linear(network.linear.in_features, 5)
    said = r"^network: gives logits \(2, 5\) of two images where it has 10 classes; give `linear` as many"
    with pytest.raises(FerdError, match=said):
        attackable(network, "network", (1, 8, 8), CPU)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_another_type_are_refused(make_network, dtype):
    with pytest.raises(FerdError, match=rf"^network: its weights or buffers are {dtype}; call \.float\(\)"):
        attackable(make_network().to(dtype), "network", (1, 8, 8), CPU)


def test_a_normalisation_of_another_type_is_refused(make_network):
    network = make_network()
    network.normalise_by(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    with pytest.raises(FerdError, match=r"^network: its weights or buffers are torch\.float64"):
        attackable(network, "network", (1, 8, 8), CPU)


def test_a_constant_that_is_no_tensor_is_seen_when_it_is_changed(make_network, images):
    class Sharpened(type(make_network())):
        sharpness = 1.0

        def classify(self, pooled):
            return self.sharpness * super().classify(pooled)

    network = make_network()
    network.__class__ = Sharpened
    twin = attackable(network, "student", (1, 8, 8), CPU)
    twin.require_following("student", images)
    network.sharpness = 1.5
    with pytest.raises(
        FerdError, match=r"^student: was changed after its twin .* \(off by [\d.]+, the largest"
    ):
        twin.require_following("student", images)


def test_a_network_that_does_not_run_in_bfloat16_is_told_so(make_network, images):
    class Positioned(type(make_network())):
        def stem(self, inputs):
            return super().stem(inputs + torch.zeros(8, 8, dtype=torch.float32))

    network = make_network()
    network.__class__ = Positioned
    twin = Folded(network, torch.bfloat16)
    with pytest.raises(FerdError, match=r"^teacher: does not run in bfloat16 \(.*set precision to float32$"):
        twin.require_following("teacher", images)
    Folded(make_network(), torch.bfloat16).require_following("teacher", images)


@pytest.mark.parametrize("within", [nn.utils.weight_norm, partial(prune.random_unstructured, amount=0.5)])
def test_a_network_that_cannot_be_copied_is_told_what_to_do(make_network, within):
    """Either keeps a weight as the result of a computation, beside the numbers that it is computed from."""
    network = make_network()
    conv = network.layer2[0].conv1
    within(conv, name="weight")
    network(torch.zeros(1, 1, 8, 8))
    with pytest.raises(
        FerdError, match=r"^network: cannot be copied, .* \(prune.remove, remove_weight_norm\)$"
    ):
        attackable(network, "network", (1, 8, 8), CPU)


def test_pruning_that_was_made_plain_is_folded_as_any_weights(make_network, images):
    network = make_network()
    conv = network.layer2[0].conv1
    prune.random_unstructured(conv, "weight", amount=0.5)
    prune.remove(conv, "weight")
    twin = attackable(network, "network", (1, 8, 8), CPU)
    assert torch.allclose(twin.network(images), network(images), atol=1e-5)


def test_convolutions_that_share_weights_are_folded_each_with_its_own_batchnorm(make_network, images):
    network = make_network()
    block = network.blocks()[0]
    block.conv1.weight = block.conv2.weight
    twin = Folded(network).network
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    assert torch.allclose(twin(images), network(images), atol=1e-4)
