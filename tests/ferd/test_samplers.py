import pytest
import torch

from ferd.config import Augmentation
from ferd.reweighting import adversarial_margins
from ferd.samplers import MarginSampler, build_sampler
from tests.ferd.test_distillation import SCHEDULE
from tests.ferd.test_methods import METHODS

CPU = torch.device("cpu")


def test_margins_are_of_attacks_on_the_teacher(make_network, images, labels, threat):
    teacher, student = make_network().requires_grad_(False), make_network(seed=1)
    sampler = MarginSampler(10, CPU, threat, 0.0)
    sampler.observe(teacher, student, images, labels, torch.Generator().manual_seed(4))
    margin = adversarial_margins(teacher, images, labels, threat, torch.Generator().manual_seed(4))
    of_class = [-margin[labels == label].mean().item() for label in range(10)]
    assert sampler.difficulty.tolist() == pytest.approx(of_class, rel=1e-5)
    of_student = adversarial_margins(student, images, labels, threat, torch.Generator().manual_seed(4))
    assert not torch.allclose(margin, of_student, atol=0.1)


def test_a_class_keeps_its_difficulty_until_it_is_seen_again(teacher, images, threat, rng):
    sampler, zeros = MarginSampler(10, CPU, threat, 0.0), torch.zeros(16, dtype=torch.int64)
    sampler.observe(teacher, teacher, images, zeros, rng)
    first = sampler.difficulty[0].item()
    sampler.observe(teacher, teacher, images, zeros + 1, rng)
    assert sampler.difficulty[0] == first
    assert sampler.difficulty.isnan().tolist() == [False] * 2 + [True] * 8


def test_a_mixed_sampler_is_half_softmax_and_half_even(threat):
    sampler = MarginSampler(4, CPU, threat, 0.0, 0.5)
    sampler.difficulty = torch.tensor([3.0, 0.0, 1.0, -1.0])
    expected = 0.5 * sampler.difficulty.softmax(0) + 0.125
    assert torch.allclose(sampler.proportions(), expected)


def test_mixed_reweighting_names_the_mixed_sampler(threat):
    method = METHODS["mixed-reweighting"]
    sampler = build_sampler(method, SCHEDULE, threat, Augmentation(padding=1, flip=False), 4, CPU)
    sampler.difficulty = torch.tensor([100.0, 0.0, 0.0, 0.0])  # all of the softmax in one class
    floor = (SCHEDULE.proportion_floor + 0.25) / 2
    assert sampler.proportions().tolist() == pytest.approx([1 - 3 * floor, floor, floor, floor])


def test_the_released_sampler_forgets_the_batch_before(teacher, images, threat, rng):
    crops = Augmentation(padding=1, flip=False)
    sampler = build_sampler(METHODS["ferd-released"], SCHEDULE, threat, crops, 10, CPU)
    sampler.observe(teacher, teacher, images, torch.zeros(16, dtype=torch.int64), rng)
    assert sampler.difficulty[0] != 0
    sampler.observe(teacher, teacher, images, torch.ones(16, dtype=torch.int64), rng)
    assert sampler.difficulty[0] == 0 and sampler.difficulty[1] != 0


def test_the_released_sampler_looks_at_the_teacher_on_augmented_images(
    teacher, make_network, images, labels, threat, monkeypatch
):
    crops = Augmentation(padding=1, flip=False)
    sampler = build_sampler(METHODS["ferd-released"], SCHEDULE, threat, crops, 10, CPU)
    monkeypatch.setattr("ferd.samplers.augment", lambda inputs, *_: inputs.flip(3))
    sampler.observe(teacher, make_network(seed=1), images, labels, torch.Generator().manual_seed(4))
    plain = MarginSampler(10, CPU, threat, 0.0)
    plain.observe(teacher, teacher, images.flip(3), labels, torch.Generator().manual_seed(4))
    assert torch.allclose(sampler.difficulty, plain.difficulty, rtol=1e-4)
