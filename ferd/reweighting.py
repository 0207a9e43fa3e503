"""Class proportions from adversarial margins, Eq. 1-2."""

import torch
from torch import Tensor

from ferd.attacks import cross_entropy, margins, pgd, random_start
from ferd.config import ThreatModel
from ferd.models.classifier import Classifier, frozen


def adversarial_margins(
    network: Classifier, inputs: Tensor, labels: Tensor, threat: ThreatModel, rng: torch.Generator
) -> Tensor:
    """Margins m (B,), Eq. 1, of the network (FERD: the teacher) under PGD on the cross-entropy.

    Args:
        inputs: (B, channels, H, W) in [0, 1].
        labels: (B,).
        threat: ε, step size and number of steps; the start is uniform in the ball.
    """
    start = random_start(inputs, threat.epsilon, rng)
    adv_inputs = pgd(network, inputs, cross_entropy(labels), threat, start)
    with frozen(network), torch.no_grad():
        return margins(network(adv_inputs), labels)


def update_difficulty(difficulty: Tensor, margin: Tensor, labels: Tensor) -> Tensor:
    """D_c = mean of −m over class c; a class not in the batch keeps its last D.

    Args:
        difficulty: D (C,); NaN for classes never seen.
        margin: m (B,).
        labels: (B,).
    """
    counts = torch.bincount(labels, minlength=len(difficulty))
    sums = torch.zeros_like(difficulty).index_add_(0, labels, -margin)
    return torch.where(counts > 0, sums / counts.clamp(min=1), difficulty)


def proportions(difficulty: Tensor, floor: float = 0.0) -> Tensor:
    """Class proportions p = floor + (1 − C·floor)·σ(D), Eq. 2; floor 0 is the paper's. (C,) -> (C,).

    A class never seen (NaN) counts with the mean D of those seen; with none seen p is uniform.
    """
    classes = len(difficulty)
    if not 0 <= floor * classes <= 1:
        raise ValueError(f"proportion_floor {floor} must be in [0, 1/{classes}]")
    seen = difficulty.nanmean().nan_to_num()
    filled = torch.where(difficulty.isnan(), seen, difficulty)
    return floor + (1 - classes * floor) * filled.softmax(0)


def released_proportions(difficulty: Tensor) -> Tensor:
    """The released code's p: D rescaled to [0.05, 0.2], divided by its sum; (C,) -> (C,)."""
    known = difficulty.nan_to_num()
    spread = known.max() - known.min()
    scaled = 0.05 + 0.15 * (known - known.min()) / spread.clamp(min=torch.finfo(known.dtype).tiny)
    return scaled / scaled.sum()
