"""How evenly accuracy, or anything that is counted, is spread over classes."""

import math

import torch
from torch import Tensor


def per_class_accuracy(correct: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Fraction correct of each class; correct (N,) bool, labels (N,) -> (C,) float64.

    Raises:
        ValueError: a class has no example.
    """
    counts = torch.bincount(labels, minlength=classes)
    if (counts == 0).any():
        raise ValueError(f"class {int((counts == 0).nonzero()[0])} has no example")
    hits = torch.bincount(labels[correct], minlength=classes)
    return hits.double() / counts


def worst_count(classes: int) -> int:
    """How many classes are called the worst: max(1, C/10), one at C = 10."""
    return max(1, classes // 10)


def worst(per_class: Tensor) -> float:
    """Mean accuracy of the ``worst_count`` worst classes; (C,) -> 0 ... 1."""
    return per_class.sort().values[: worst_count(len(per_class))].mean().item()


def nsd(per_class: Tensor) -> float:
    """Normalised standard deviation: population std / mean over classes, 0 (even) ... √(C − 1) (one class).

    Of accuracies (C,). √(C − 1) where all are 0, too: to be wrong on everything is not to be fair.
    """
    mean = per_class.mean().item()
    return per_class.std(correction=0).item() / mean if mean else math.sqrt(len(per_class) - 1)


def normalised_entropy(counts: Tensor) -> float:
    """−Σ p log p / log C of the shares p = counts / Σ counts; (C,) -> 0 (one class) ... 1 (even)."""
    shares = counts.double() / counts.sum()
    return (torch.xlogy(shares, shares).sum().abs() / math.log(len(counts))).item()
