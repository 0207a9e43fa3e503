import math

import pytest
import torch

from ferd.fairness import normalised_entropy, nsd, per_class_accuracy, worst


def test_per_class_accuracy_literal():
    correct = torch.tensor([True, False, True, True, False])
    got = per_class_accuracy(correct, torch.tensor([0, 0, 1, 1, 2]), 3)
    assert got.tolist() == [0.5, 1.0, 0.0]
    assert per_class_accuracy(correct[:3], torch.tensor([0, 0, 0]), 1).tolist() == [2 / 3]  # float64


def test_a_class_without_an_example_is_refused_by_its_number():
    with pytest.raises(ValueError, match="class 1 has no example"):
        per_class_accuracy(torch.tensor([True]), torch.tensor([0]), 2)


def test_nsd_uses_the_population_standard_deviation():
    assert nsd(torch.tensor([0.2, 0.4], dtype=torch.float64)) == pytest.approx(1 / 3)
    four = torch.tensor([0.0, 0.0, 0.5, 0.5], dtype=torch.float64)
    assert nsd(four) == pytest.approx(1.0)
    assert nsd(four) != pytest.approx(2 / math.sqrt(3))  # the sample standard deviation


def test_nsd_is_zero_where_classes_are_equal_and_where_all_are_zero():
    assert nsd(torch.full((10,), 0.3)) == pytest.approx(0, abs=1e-6)
    assert nsd(torch.zeros(10)) == 3.0 == pytest.approx(nsd(torch.eye(10)[0]))


@pytest.mark.parametrize(("classes", "expected"), [(2, 0.0), (10, 0.0), (19, 0.0), (20, 0.5)])
def test_worst_is_the_mean_of_a_tenth_of_the_classes_and_of_one_at_least(classes, expected):
    per_class = torch.arange(classes, dtype=torch.float64).flip(0)
    assert worst(per_class) == expected


def test_worst_of_200_classes_averages_twenty():
    per_class = torch.full((200,), 0.9, dtype=torch.float64)
    per_class[5:200:10] = torch.arange(20, dtype=torch.float64) / 100
    assert worst(per_class) == pytest.approx(0.095)


def test_entropy_is_a_share_of_the_largest():
    assert normalised_entropy(torch.tensor([3, 3, 3])) == pytest.approx(1)
    assert str(normalised_entropy(torch.tensor([5, 0, 0]))) == "0.0"  # not -0.0
    assert normalised_entropy(torch.tensor([2, 2, 0, 0])) == pytest.approx(0.5)
    assert normalised_entropy(torch.tensor([1, 2])) == pytest.approx(math.log2(3) - 2 / 3, rel=1e-12)
