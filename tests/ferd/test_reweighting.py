import math

import pytest
import torch

from ferd.attacks import cross_entropy, margins, pgd, random_start
from ferd.reweighting import adversarial_margins, proportions, released_proportions, update_difficulty

NAN = math.nan


def test_difficulty_is_the_mean_negative_margin_of_each_class():
    margin = torch.tensor([1.0, 3.0, -2.0, 0.5])
    difficulty = update_difficulty(torch.full((2,), NAN), margin, torch.tensor([0, 0, 1, 1]))
    assert difficulty.tolist() == [-2.0, 0.75]


def test_an_absent_class_keeps_its_difficulty_and_a_present_one_forgets_it():
    before = torch.tensor([5.0, 7.0, NAN])
    after = update_difficulty(before, torch.tensor([2.0]), torch.tensor([1]))
    assert after[:2].tolist() == [5.0, -2.0]
    assert after[2].isnan()
    assert before[:2].tolist() == [5.0, 7.0]


def test_proportions_are_the_softmax_of_the_difficulty():
    p = proportions(torch.tensor([0.0, math.log(2), math.log(5)]))
    assert p.tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8])


def test_a_class_never_seen_has_the_mean_difficulty_of_those_seen():
    p = proportions(torch.tensor([0.0, NAN, 2 * math.log(2)]))
    assert p.tolist() == pytest.approx([1 / 7, 2 / 7, 4 / 7])


def test_with_no_class_seen_proportions_are_uniform():
    assert proportions(torch.full((4,), NAN)).tolist() == pytest.approx([0.25] * 4)


def test_the_floor_is_the_share_of_a_class_that_would_have_none():
    p = proportions(torch.tensor([0.0, 100.0, -100.0, 0.0]), floor=0.1)
    assert p.tolist() == pytest.approx([0.1, 0.7, 0.1, 0.1])


def test_the_largest_floor_is_uniform_and_a_larger_one_is_refused():
    difficulty = torch.tensor([3.0, -1.0, 0.0, NAN])
    assert proportions(difficulty, floor=0.25).tolist() == pytest.approx([0.25] * 4)
    for floor in (0.26, -0.01):
        with pytest.raises(ValueError, match="proportion_floor"):
            proportions(difficulty, floor)


@pytest.mark.parametrize("seed", range(5))
def test_proportions_sum_to_one_and_respect_the_floor(seed):
    source = torch.Generator().manual_seed(seed)
    difficulty = 20 * torch.randn(100, generator=source)
    difficulty[::7] = NAN
    p = proportions(difficulty, floor=0.002)
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert p.min() >= 0.002 - 1e-7


def test_adversarial_margins_are_the_margins_after_pgd(teacher, images, labels, threat):
    got = adversarial_margins(teacher, images, labels, threat, torch.Generator().manual_seed(3))
    start = random_start(images, threat.epsilon, torch.Generator().manual_seed(3))
    adv = pgd(teacher, images, cross_entropy(labels), threat, start)
    assert torch.allclose(got, margins(teacher(adv), labels))
    assert got.mean() < margins(teacher(images), labels).mean() - 0.1
    assert not got.requires_grad


def test_released_proportions_are_rescaled_and_even_before_any_margin():
    found = released_proportions(torch.tensor([-1.0, 0.0, 1.0]))
    assert found.tolist() == pytest.approx([0.05 / 0.375, 0.125 / 0.375, 0.2 / 0.375])
    assert released_proportions(torch.full((4,), torch.nan)).tolist() == pytest.approx([0.25] * 4)
