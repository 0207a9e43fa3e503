import math

import pytest
import torch

from ferd.adversaries import AdaptiveUtaeAdversary, HighEntropyAdversary, build_adversary
from ferd.attacks import entropy, utae
from ferd.errors import FerdError
from tests.ferd.test_methods import METHODS

CPU = torch.device("cpu")


def test_adaptive_gamma_rises_from_0_to_gamma_as_outcomes_concentrate(threat):
    adversary = AdaptiveUtaeAdversary(0.5, threat, 4, CPU)
    assert adversary.gammas().tolist() == pytest.approx([0.0] * 4, abs=1e-6)
    adversary.outcomes = torch.tensor(
        [[0.0, 8.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0], [5.0, 0.0, 0.0, 0.0]]
    )
    half = 0.5 * (1 - math.log(2) / math.log(3))
    assert adversary.gammas().tolist() == pytest.approx([0.5, half, 0.0, 0.5], abs=1e-6)


def test_adaptive_gamma_counts_only_what_left_its_class(threat):
    adversary = AdaptiveUtaeAdversary(0.5, threat, 3, CPU)
    adversary.observe(torch.tensor([0, 0, 1]), torch.eye(3)[[1, 0, 2]])
    expected = 0.99 * (1 - torch.eye(3))
    expected[0, 1] += 1
    expected[1, 2] += 1
    assert torch.allclose(adversary.outcomes, expected)


def test_the_adaptive_attack_has_the_gamma_of_each_images_class(teacher, images, labels, threat):
    adversary = AdaptiveUtaeAdversary(0.5, threat, 10, CPU)
    adversary.outcomes = torch.eye(10).roll(1, 1)  # of every class, all in the next
    adversary.outcomes[labels[0]] = 1 - torch.eye(10)[labels[0]]
    gamma = adversary.gammas()[labels]
    assert gamma.tolist() == pytest.approx([0.0 if label == labels[0] else 0.5 for label in labels], abs=1e-6)
    probs = teacher(images).softmax(1)
    given = adversary.attack(teacher, images, labels, probs, torch.Generator().manual_seed(0))
    expected = utae(teacher, images, probs, gamma, threat, torch.Generator().manual_seed(0))
    assert torch.equal(given, expected)


def test_the_adaptive_attack_needs_more_than_one_class_to_end_in(threat):
    with pytest.raises(FerdError, match="adaptive-utae needs 3 classes, not 2; take utae"):
        AdaptiveUtaeAdversary(0.5, threat, 2, CPU)


def test_high_entropy_examples_raise_every_entropy_and_stay_images(teacher, images, labels, rng):
    adversary = HighEntropyAdversary(10)
    adv_inputs = adversary.attack(teacher, images, labels, torch.empty(0), rng)
    gained = entropy(teacher(adv_inputs)) - entropy(teacher(images))
    assert (gained > 0).all() and gained.mean() > 0.01
    assert adv_inputs.min() >= 0 and adv_inputs.max() <= 1
    assert (adv_inputs - images).abs().max() > 0.15


def test_high_entropy_examples_are_steps_of_three_hundredths_from_an_augmented_image(
    teacher, images, labels, rng, monkeypatch
):
    monkeypatch.setattr("ferd.adversaries.augment_strongly", lambda inputs, _: torch.full_like(inputs, 0.5))
    (one_step,) = HighEntropyAdversary(1).attack(teacher, images[:1], labels[:1], torch.empty(0, 10), rng)
    steps = (one_step - 0.5).abs()
    assert ((steps - 0.03).abs() < 0.005).all()  # the start has noise of 0.001


def test_the_high_entropy_adversary_of_dfhl_rs_takes_the_students_steps(threat):
    assert build_adversary(METHODS["dfhl-rs"], threat.with_steps(7), 10, CPU).threat.steps == 7
