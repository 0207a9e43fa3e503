import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ferd.attacks import (
    cross_entropy,
    fgsm,
    gaussian_start,
    margins,
    negative_margin,
    pgd,
    points_right,
    project,
    random_start,
    uniform_target,
    utae,
)
from ferd.config import ThreatModel
from ferd.errors import FerdError
from ferd.losses import kl_from_uniform
from ferd.models.classifier import fast_layout
from ferd.reweighting import adversarial_margins

PROBS = torch.full((16, 10), 0.05).index_fill(1, torch.tensor(3), 0.55)


def attack(name, network, images, labels, threat, rng):
    start = random_start(images, threat.epsilon, rng)
    return {
        "fgsm": lambda: fgsm(network, images, labels, threat.epsilon),
        "cross-entropy": lambda: pgd(network, images, cross_entropy(labels), threat, start),
        "margin": lambda: pgd(network, images, negative_margin(labels), threat, start),
        "kl": lambda: pgd(network, images, uniform_target(PROBS, 0.0), threat, start),
        "uniform target": lambda: pgd(network, images, uniform_target(PROBS, 0.5), threat, start),
        "utae": lambda: utae(network, images, PROBS, 0.5, threat, rng),
        "margins": lambda: adversarial_margins(network, images, labels, threat, rng),
    }[name]()


ATTACKS = ["fgsm", "cross-entropy", "margin", "kl", "uniform target", "utae", "margins"]


@pytest.fixture
def linear():
    """Two classes, f(x) = W x in float64, and images from whose ball [0, 1] is out of reach."""
    source = torch.Generator().manual_seed(4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    with torch.no_grad():
        network[1].weight.normal_(generator=source)
    images = torch.empty(5, 3, 2, 2, dtype=torch.float64).uniform_(0.2, 0.8, generator=source)
    return network, images, torch.tensor([0, 1, 0, 1, 1])


@pytest.mark.parametrize("objective", [cross_entropy, negative_margin])
def test_pgd_reaches_the_optimum_of_a_linear_model(linear, objective, rng):
    network, images, labels = linear
    threat = ThreatModel(norm="linf", epsilon=0.1, step_size=0.03, steps=8)
    adv = pgd(network, images, objective(labels), threat, random_start(images, 0.1, rng))
    lost = margins(network(images), labels) - margins(network(adv), labels)
    slope = network[1].weight[0] - network[1].weight[1]
    assert torch.allclose(lost, 0.1 * slope.abs().sum().expand(5), rtol=1e-9)


def test_fgsm_reaches_the_optimum_of_a_linear_model(linear):
    network, images, labels = linear
    adv = fgsm(network, images, labels, 0.15)
    lost = margins(network(images), labels) - margins(network(adv), labels)
    slope = network[1].weight[0] - network[1].weight[1]
    assert torch.allclose(lost, 0.15 * slope.abs().sum().expand(5), rtol=1e-9)


def test_fgsm_is_one_step_of_epsilon_along_the_sign_of_the_gradient(teacher, images, labels):
    inputs = images.clone().requires_grad_()
    F.cross_entropy(teacher(inputs), labels).backward()
    expected = (images + 0.1 * inputs.grad.sign()).clamp(0, 1)
    assert torch.allclose(fgsm(teacher, images, labels, 0.1), expected, atol=1e-7)


@pytest.mark.parametrize("seed", range(8))
def test_adversarial_images_stay_in_the_ball_and_in_the_unit_cube(teacher, labels, seed):
    source = torch.Generator().manual_seed(seed)
    images = torch.rand(16, 1, 8, 8, generator=source).mul(1.6).sub(0.3).clamp(0, 1)
    assert (images == 0).any() and (images == 1).any()
    threat = ThreatModel(norm="linf", epsilon=0.07, step_size=0.05, steps=3)
    for name in ATTACKS[:-1]:
        adv = attack(name, teacher, images, labels, threat, source)
        assert (adv - images).abs().max() <= 0.07 + 1e-6, name
        assert adv.min() >= 0 and adv.max() <= 1, name
        assert not adv.requires_grad


def test_project_literal():
    inputs = torch.tensor([0.0, 0.5, 0.5, 1.0, 0.05])
    points = torch.tensor([-0.5, 0.9, 0.55, 2.0, -0.2])
    expected = torch.tensor([0.0, 0.6, 0.55, 1.0, 0.0])
    assert torch.allclose(project(points, inputs, 0.1), expected)


def test_starts_are_spread_as_they_are_named(rng):
    inputs = torch.full((4, 1, 64, 64), 0.5)
    uniform = random_start(inputs, 0.1, rng) - 0.5
    assert uniform.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    gaussian = gaussian_start(inputs, 0.1, rng) - 0.5
    assert gaussian.std().item() == pytest.approx(0.001, rel=0.02)


def test_margins_literal():
    logits = torch.tensor([[3.0, 1.0, 2.5], [3.0, 1.0, 2.5], [-4.0, -4.0, -9.0]])
    assert margins(logits, torch.tensor([0, 1, 1])).tolist() == [0.5, -2.0, 0.0]


def test_utae_with_gamma_zero_is_kl_pgd(make_network, images, threat):
    network, inputs = make_network().double().requires_grad_(False), images.double()
    probs = network(inputs).softmax(1)
    got = utae(network, inputs, probs, 0.0, threat, torch.Generator().manual_seed(9))
    source = torch.Generator().manual_seed(9)
    noise = torch.randn(inputs.shape, generator=source, dtype=torch.float64)
    x = (inputs + 0.001 * noise).clamp(0, 1)
    for _ in range(threat.steps):
        x = x.detach().requires_grad_()
        kl = (probs * (probs.log() - network(x).log_softmax(1))).sum()
        kl.backward()
        x = x + 0.025 * x.grad.sign()
        x = torch.maximum(torch.minimum(x, inputs + 0.1), inputs - 0.1).clamp(0, 1)
    assert torch.allclose(got, x.detach(), atol=1e-9)


@pytest.mark.parametrize("target", ["own", "other"])
def test_a_larger_gamma_ends_nearer_to_uniform(teacher, make_network, images, threat, target):
    source = teacher if target == "own" else make_network(seed=5)
    probs = source(images).softmax(1).detach()
    distances = []
    for gamma in (0.0, 0.5, 0.9):
        rng = torch.Generator().manual_seed(0)
        adv = utae(teacher, images, probs, gamma, threat.with_steps(10), rng)
        distances.append(kl_from_uniform(teacher(adv)).mean().item())
    assert distances[0] > 1.05 * distances[1] > 1.05 * distances[2]


def test_uniform_target_literal():
    logits = torch.tensor([[math.log(3), 0.0]])
    value = uniform_target(torch.tensor([[1.0, 0.0]]), 0.5)(logits)
    expected = math.log(4 / 3) - 0.5 * (math.log(2) - 0.5 * math.log(3))
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_leaves_a_frozen_teacher_in_eval_mode(
    name, teacher, images, labels, threat, rng, untouched
):
    with untouched(teacher):
        attack(name, teacher, images, labels, threat, rng)
    assert not any(module.training for module in teacher.modules())


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gives_a_network_in_train_mode_back_in_train_mode(
    name, make_network, images, labels, threat, rng, untouched
):
    network = make_network().train()
    network.conv1.weight.requires_grad_(False)
    network.layer2.eval()
    with untouched(network):
        attack(name, network, images, labels, threat, rng)


def test_an_attack_sees_the_network_in_eval_mode(make_network, images, labels, threat, rng):
    network = make_network()
    evaluated = attack("cross-entropy", network, images, labels, threat, rng)
    trained = attack("cross-entropy", network.train(), images, labels, threat, rng.manual_seed(0))
    assert torch.equal(evaluated, trained)


def test_an_attack_works_where_gradients_are_switched_off(teacher, images, labels):
    with torch.no_grad():
        adv = fgsm(teacher, images, labels, 0.1)
    assert not torch.equal(adv, images)
    assert not images.requires_grad


def test_inference_mode_is_refused_and_leaves_the_network_as_it_was(
    make_network, images, labels, threat, rng
):
    network = make_network()
    with torch.inference_mode():
        for attack in (
            lambda: fgsm(network, images, labels, 0.1),
            lambda: fast_layout(network, torch.device("cpu")),
        ):
            with pytest.raises(FerdError, match=r"^inference mode records no gradients, .*torch.no_grad"):
                attack()
    network(images).sum().backward()


@pytest.mark.parametrize("gamma", [-0.1, float("nan")])
def test_a_gamma_below_0_or_that_is_no_number_is_refused(teacher, images, threat, rng, gamma):
    with pytest.raises(FerdError, match=rf"^gamma {gamma}: must be 0 or more"):
        utae(teacher, images, torch.full((16, 10), 0.1), gamma, threat, rng)


def test_one_gamma_a_sample_is_the_attack_with_that_gamma(teacher, images, threat):
    probs = teacher(images).softmax(1)
    one = utae(teacher, images, probs, 0.5, threat, torch.Generator().manual_seed(0))
    each = utae(teacher, images, probs, torch.full((16,), 0.5), threat, torch.Generator().manual_seed(0))
    assert torch.equal(one, each)


def test_the_points_of_an_attack_that_are_right_are_counted(teacher, images, threat):
    predicted = teacher(images).argmax(1)
    still = threat.model_copy(update={"epsilon": 1e-9})

    def counts(labels, threat):
        with points_right(teacher, labels) as found:
            pgd(teacher, images, cross_entropy(labels), threat, images)
        teacher(images)  # what is shown afterwards does not count
        return found

    assert counts(predicted, still).tolist() == [threat.steps] * 16
    assert counts((predicted + 1) % 10, still).tolist() == [0] * 16
    found = counts(predicted, threat)
    assert (found >= 1).all() and (found <= threat.steps).all()
    steps, points = [], images
    for _ in range(threat.steps):
        steps.append(teacher(points).argmax(1) == predicted)
        one = threat.with_steps(1)
        points = project(pgd(teacher, points, cross_entropy(predicted), one, points), images, threat.epsilon)
    assert torch.equal(found, torch.stack(steps).sum(0))
