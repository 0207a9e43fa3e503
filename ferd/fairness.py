"""How evenly accuracy is spread over classes."""

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


def worst(per_class: Tensor) -> float:
    """Mean accuracy of the worst max(1, C/10) classes (the worst class at C = 10)."""
    tenth = max(1, len(per_class) // 10)
    return per_class.sort().values[:tenth].mean().item()


def nsd(per_class: Tensor) -> float:
    """Normalised standard deviation: population std / mean over classes; 0 where all are 0."""
    mean = per_class.mean().item()
    return per_class.std(correction=0).item() / mean if mean else 0.0
