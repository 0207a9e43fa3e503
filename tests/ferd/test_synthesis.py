import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import reference
from ferd.bottleneck import robust_channels
from ferd.config import Augmentation, Bottleneck, NonRobust, Synthesis, SynthesisWeights
from ferd.errors import FerdError
from ferd.losses import kl_from_uniform
from ferd.models.generator import Generator
from ferd.synthesis import (
    adversarial_loss,
    dfhl_rs_loss,
    diversity_loss,
    ferd_loss,
    synthesise,
    uniformity_loss,
)

CROPS = Augmentation(padding=1, flip=False)
SETTINGS = Synthesis(
    steps=4,
    latent_dim=16,
    generator_learning_rate=2e-3,
    latent_learning_rate=0.015,
    weights=SynthesisWeights(adv=1.0, bn=1.0, oh=1.0, uni=1.0),
    bottleneck=Bottleneck(threshold="mean", steps=60, learning_rate=0.1, beta=0.3),
)


@pytest.fixture
def generator():
    generator = Generator(16, 1, 8)
    generator.reinitialise(torch.Generator().manual_seed(0))
    return generator


@pytest.fixture
def run(teacher, generator, labels):
    """One synthesis at seed 0, with changed settings."""

    def synthesis(student=None, *, fae=False, layer=-1, seed=0, teacher=teacher, crops=CROPS, **changes):
        settings = SETTINGS.model_copy(update=changes)
        rng = torch.Generator().manual_seed(seed)
        nonrobust = NonRobust(layer=layer, threshold_over="sample") if fae else None
        with ferd_loss(teacher, student, labels, nonrobust, settings, rng) as loss:
            return synthesise(loss, generator, labels, settings, crops, rng)

    return synthesis


@pytest.mark.parametrize("layer", [-1, -2])
def test_uniformity_reaches_the_generator_through_the_features_and_not_through_the_mask(
    teacher, generator, labels, layer
):
    with torch.no_grad():
        teacher.layer2[0].bn2.weight.mul_(10)
        teacher.layer3[0].bn2.weight.mul_(10)
    latents = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    choice = NonRobust(layer=layer, threshold_over="sample")
    weights = list(generator.parameters())

    features = teacher.features(generator(latents), layer)
    mask = robust_channels(
        teacher, features, labels, choice, SETTINGS.bottleneck, torch.Generator().manual_seed(2)
    )
    assert all(weight.grad is None for weight in weights)
    assert 0 < mask.float().mean() < 1
    constant = torch.where(mask[:, :, None, None], 0.0, 1.0)
    expected_loss = kl_from_uniform(teacher.head(features * constant, layer)).mean()
    expected = torch.autograd.grad(expected_loss, weights)

    features = teacher.features(generator(latents), layer)
    rng = torch.Generator().manual_seed(2)
    loss, fraction = uniformity_loss(teacher, features, labels, choice, SETTINGS, rng)
    got = torch.autograd.grad(loss, weights)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert fraction.item() == pytest.approx(mask.float().mean().item())
    assert got[0].abs().max() > 0
    for one, two in zip(got, expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-8)


def test_adversarial_loss_of_equal_logits_is_minus_the_entropy():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    assert adversarial_loss(logits, logits).item() == pytest.approx(-0.693147, rel=1e-5)


def test_adversarial_loss_falls_as_the_student_disagrees():
    teacher = torch.tensor([[2.0, 0.0, -1.0]])
    near = adversarial_loss(teacher, torch.tensor([[1.5, 0.0, -1.0]]))
    far = adversarial_loss(teacher, torch.tensor([[-1.0, 0.0, 2.0]]))
    assert far < near < 0


def test_adversarial_loss_pulls_the_teacher_by_nearly_uniform_weights():
    teacher = torch.tensor([[2.0, 0.0, -2.0]], requires_grad=True)
    adversarial_loss(teacher, torch.zeros(1, 3)).backward()
    expected = torch.tensor([[-2 / 3, 0.0, 2 / 3]])  # of the variance under equal weights
    assert torch.allclose(teacher.grad, expected, atol=0.02)
    certain = torch.tensor([[40.0, 0.0]], requires_grad=True)
    adversarial_loss(certain, torch.zeros(1, 2)).backward()
    one, other = torch.tensor([0.4, 0.0]).softmax(0).tolist()  # constants, though they are the teacher's
    assert certain.grad.tolist() == [pytest.approx([-40 * one * other, 40 * one * other])]


def test_under_bf16_the_networks_run_in_bfloat16_and_the_losses_are_float32(
    teacher, make_network, images, labels, rng
):
    student, seen = make_network(seed=1), []
    for network in (teacher, student):
        network.linear.register_forward_hook(lambda *given: seen.append(given[-1]))
    choice = NonRobust(layer=-1, threshold_over="sample")
    with ferd_loss(teacher, student, labels, choice, SETTINGS, rng, bf16=True) as loss:
        found = loss(images)
    logits = seen[:2]
    assert [one.dtype for one in logits] == [torch.bfloat16] * 2
    assert found["adv"] == adversarial_loss(*(one.float() for one in logits))
    assert {name: value.dtype for name, value in found.items()} == dict.fromkeys(found, torch.float32)


def test_images_lie_in_the_unit_interval_and_carry_no_gradient(run):
    images = run().images
    assert images.shape == (16, 1, 8, 8)
    assert images.min() >= 0 and images.max() <= 1
    assert not images.requires_grad


def test_the_kept_loss_never_rises_with_more_steps(run):
    losses = [run(steps=steps).figures["loss"].item() for steps in (1, 2, 4, 8, 16)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1


def test_a_step_that_makes_the_loss_worse_is_not_kept(run):
    wild = {"generator_learning_rate": 1e30, "latent_learning_rate": 1e30}
    first = run(steps=1, **wild)
    with_a_bad_step = run(steps=2, **wild)
    assert torch.equal(first.images, with_a_bad_step.images)


def test_only_the_terms_that_are_used_are_reported(run, make_network):
    student = make_network(seed=1)
    assert set(run().figures) == {"loss", "bn", "oh"}
    assert set(run(student).figures) == {"loss", "bn", "oh", "adv"}
    assert set(run(fae=True).figures) == {"loss", "bn", "oh", "uni", "robust_fraction"}


def test_the_loss_is_the_weighted_sum_of_its_terms(run, make_network):
    weights = SynthesisWeights(adv=0.5, bn=2.0, oh=3.0, uni=7.0)
    figures = run(make_network(seed=1), fae=True, weights=weights).figures
    terms = {"adv": 0.5, "bn": 2.0, "oh": 3.0, "uni": 7.0}
    expected = sum(weight * figures[name].item() for name, weight in terms.items())
    assert figures["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_the_second_pass_for_fae_does_not_count_in_the_statistics(run):
    chosen = {
        "crops": Augmentation(padding=0, flip=False),
        "weights": SynthesisWeights(adv=0.0, bn=1.0, oh=1.0, uni=0.0),
        "layer": -2,
    }
    without, with_fae = run(**chosen), run(**chosen, fae=True)
    assert with_fae.figures["bn"].item() == pytest.approx(without.figures["bn"].item(), rel=1e-5)
    assert torch.allclose(with_fae.images, without.images, atol=1e-5)


def test_fitting_moves_images_towards_their_labels(run, trained, labels):
    only = SynthesisWeights(adv=0.0, bn=0.0, oh=1.0, uni=0.0)
    fast = {"teacher": trained, "weights": only, "generator_learning_rate": 0.01}
    before, after = run(**fast, steps=1), run(**fast, steps=60)
    assert after.figures["oh"] < 0.7 * before.figures["oh"]
    assert (trained(after.images).argmax(1) == labels).float().mean() > 0.5


def test_networks_come_out_as_they_went_in(run, teacher, make_network, untouched):
    student = make_network(seed=1).train()
    with untouched(teacher), untouched(student):
        run(student, fae=True)
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_equal_seeds_give_equal_images(run):
    assert torch.equal(run(seed=5).images, run(seed=5).images)
    assert not torch.equal(run(seed=5).images, run(seed=6).images)


def test_a_loss_that_was_never_finite_is_refused_in_one_line(run, make_network):
    broken = make_network().requires_grad_(False)
    broken.linear.bias[0] = torch.nan
    with pytest.raises(FerdError, match="not finite") as raised:
        run(teacher=broken)
    assert "\n" not in str(raised.value)
    assert not any(module._forward_pre_hooks for module in broken.modules())


def test_whole_steps_of_synthesis_are_those_of_the_plain_reference(make_network, labels):
    """Both learn generator and latent codes, by Adam of these betas, on cropped images."""
    teacher, student = make_network().requires_grad_(False), make_network(seed=1)
    settings = SETTINGS.model_copy(update={"latent_learning_rate": 0.5, "steps": 5})
    generators = [Generator(16, 1, 8) for _ in range(2)]
    streams = [torch.Generator().manual_seed(3) for _ in range(2)]
    nonrobust = NonRobust(layer=-1, threshold_over="sample")
    with ferd_loss(teacher, student, labels, nonrobust, settings, streams[0]) as loss:
        found = synthesise(loss, generators[0], labels, settings, CROPS, streams[0]).images
    plain = reference.plain(teacher), reference.plain(student)
    expected = reference.synthesise(*plain, generators[1], labels, settings, CROPS, streams[1])
    assert (found - expected).abs().mean() < 0.02  # another choice of the four is 0.07 or more away


def test_dfhl_rs_smooths_labels_to_four_fifths_for_the_true_one_of_ten(make_network, images):
    student = make_network().eval()
    labels = student(images).argmax(1)
    targets = torch.full((16, 10), 0.2 / 9).scatter_(1, labels.unsqueeze(1), 0.8)
    with dfhl_rs_loss(student, labels) as loss:
        found = loss(images)
    assert found["loss"].item() == pytest.approx((found["oh"] + 3 * found["diversity"]).item())
    assert found["oh"].item() == pytest.approx(F.cross_entropy(student(images), targets).item(), rel=1e-5)


def test_diversity_is_least_where_classes_are_even():
    assert diversity_loss(torch.zeros(4, 10)).item() == pytest.approx(-1.0)
    assert diversity_loss(100 * torch.eye(10)[[3, 3]]).item() == pytest.approx(0.0, abs=1e-6)


def test_dfhl_rs_of_few_classes_is_refused(make_network):
    with (
        pytest.raises(FerdError, match=r"^synthesis dfhl-rs needs 4 classes, not 3; take plain or fae$"),
        dfhl_rs_loss(make_network(classes=3), torch.arange(3)),
    ):
        pass


class Shifted(nn.Module):
    """A block, and then −0.1: its backward pass does not look at its output."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, features):
        return self.block(features) - 0.1


class Activated(Shifted):
    """A block that begins by an activation, in place or not."""

    def __init__(self, block, in_place):
        super().__init__(block)
        self.activation = nn.ReLU(in_place)

    def forward(self, features):
        return self.block(self.activation(features))


def test_a_block_that_changes_its_input_leaves_the_features_of_l_uni_alone(run, teacher):
    results = []
    for in_place in (False, True):
        changed = copy.deepcopy(teacher)
        *first, last = changed.blocks()
        blocks = [*first[:-1], Shifted(first[-1]), Activated(last, in_place)]
        changed.blocks = lambda blocks=blocks: blocks
        results.append(run(teacher=changed, fae=True, layer=-2))
    assert torch.equal(results[0].images, results[1].images)
    assert results[0].figures["uni"] == results[1].figures["uni"]
