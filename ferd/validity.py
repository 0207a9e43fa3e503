"""Checks before an accuracy under attack is believed, after Croce et al. 2021 (RobustBench).

An attack that finds nothing may have been blind: to a network that answers at random or gives
probabilities where logits belong, which is refused; to one without gradients, or by being run badly,
which is said. So is it of a network that is right on clean images and hardly ever under attack, of one
that PGD never fools, and of one that AutoAttack, a part of which asks for no gradient, fools far more often.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ferd.attacks import Objective, cross_entropy, negative_margin
from ferd.errors import FerdError
from ferd.models.classifier import Classifier, frozen

NOISE = 1e-4  # two passes may differ by this fraction of the largest logit: rounding
STANDARD_ERRORS = 2  # a stronger attack may leave so many more correct
MASKED = 0.15  # AutoAttack seldom fools so many more images than a PGD that sees the gradients
MASKED_STANDARD_ERRORS = 3  # nor so many more by chance
ENOUGH = 100  # clean images that are right: PGD that fools none of them is blind, or its ball tiny
ABOVE_CHANCE = 0.1  # a clean accuracy over 1/C + this is well above chance
NAMES = {"fgsm": "FGSM", "pgd20": "PGD-20", "cw30": "CW-30", "autoattack": "AutoAttack"}
ORDER = (  # weaker, stronger
    ("clean", "pgd20"),
    ("fgsm", "pgd20"),
    ("pgd20", "autoattack"),
    ("cw30", "autoattack"),
)


@dataclass(frozen=True)
class ZeroGradients:
    """Shares of some images whose input gradient is exactly 0, or no number, in every pixel; a loss each."""

    images: int
    cross_entropy: float
    margin: float

    def warnings(self) -> list[str]:
        """A sentence for each loss that some images have no gradient of."""
        return [
            f"gradient masking: the gradient of the {loss} is exactly 0, or no number, on "
            f"{_percent(share)} of {self.images} images: attacks that follow it find nothing there"
            for loss, share in (("cross-entropy", self.cross_entropy), ("margin loss", self.margin))
            if share
        ]


@dataclass(frozen=True)
class Comparison:
    """Accuracy under a weaker and a stronger attack on the images that both were given.

    ``standard_error`` is that of the mean of the paired differences d: √(mean (d − d̄)² / n).
    """

    weaker: str
    stronger: str
    images: int
    weaker_accuracy: float
    stronger_accuracy: float
    standard_error: float

    def warnings(self, classes: int) -> list[str]:
        """Whether a network of so many classes is not robust, hides its gradients or was attacked badly."""
        if self.weaker == "clean":
            return self._beside_clean(classes)
        weaker, stronger = _percent(self.weaker_accuracy), _percent(self.stronger_accuracy)
        drop = self.weaker_accuracy - self.stronger_accuracy
        if self.stronger == "autoattack" and drop > max(MASKED, MASKED_STANDARD_ERRORS * self.standard_error):
            return [
                f"gradient masking: AutoAttack leaves {stronger} of {self.images} images right, "
                f"{NAMES[self.weaker]} {weaker} of the same: attacks that follow the gradient find too little"
            ]
        if self.weaker_accuracy >= self.stronger_accuracy - STANDARD_ERRORS * self.standard_error:
            return []
        return [
            f"{NAMES[self.stronger]} was not run well: it leaves {stronger} of {self.images} images right, "
            f"the weaker {NAMES[self.weaker]} only {weaker} of the same"
        ]

    def _beside_clean(self, classes: int) -> list[str]:
        weaker, stronger = _percent(self.weaker_accuracy), _percent(self.stronger_accuracy)
        if self.weaker_accuracy <= 1 / classes + ABOVE_CHANCE:
            return []
        if self.stronger_accuracy <= 1 / classes:
            return [f"not robust: {weaker} clean but {stronger} under PGD-20"]
        right = round(self.weaker_accuracy * self.images)
        if right >= ENOUGH and self.stronger_accuracy >= self.weaker_accuracy:
            return [
                f"gradient masking, or too small an ε: PGD-20 turns none of the {right} images that are right"
            ]
        return []


@dataclass(frozen=True)
class Checks:
    """What was found about a network of ``classes`` outputs and the attacks that it was given."""

    classes: int
    zero_gradients: ZeroGradients
    comparisons: tuple[Comparison, ...]

    def warnings(self) -> list[str]:
        """Plain sentences; none where nothing is suspicious."""
        return self.zero_gradients.warnings() + [
            sentence for comparison in self.comparisons for sentence in comparison.warnings(self.classes)
        ]

    def as_json(self) -> dict[str, Any]:
        """The figures and the warnings as JSON values."""
        return {
            "zero_gradients": asdict(self.zero_gradients),
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "warnings": self.warnings(),
        }


def inspect(network: Classifier, images: Tensor, labels: Tensor) -> ZeroGradients:
    """Look at a network before it is attacked; images (B, channels, H, W) in [0, 1], labels (B,).

    Raises:
        FerdError: its outputs are random, probabilities, or not finite.
    """
    with frozen(network):
        _refuse_unfit_outputs(network, images)
        return ZeroGradients(
            len(labels),
            _zero_share(network, images, cross_entropy(labels)),
            _zero_share(network, images, negative_margin(labels)),
        )


def compare(weaker: str, stronger: str, weaker_correct: Tensor, stronger_correct: Tensor) -> Comparison:
    """Two attacks' verdicts (n,) bool on the same images."""
    difference = weaker_correct.double() - stronger_correct.double()
    return Comparison(
        weaker,
        stronger,
        len(difference),
        weaker_correct.double().mean().item(),
        stronger_correct.double().mean().item(),
        difference.std(correction=0).item() / len(difference) ** 0.5,
    )


@torch.no_grad()
def _refuse_unfit_outputs(network: Classifier, images: Tensor) -> None:
    outputs, again = network(images), network(images)
    if not outputs.isfinite().all():
        raise FerdError("the network's logits are not all finite; its training diverged: make it again")
    difference = (outputs - again).abs().max()
    if difference > NOISE * outputs.abs().max():
        raise FerdError(
            f"the network is random: two passes over the same images differ by {difference.item():.3g}; "
            "accuracy under attack means nothing: take the randomness out"
        )
    if (outputs >= 0).all() and torch.allclose(outputs.sum(1), outputs.new_ones(len(outputs)), atol=1e-4):
        raise FerdError(
            "the network gives probabilities where logits belong, which blind attacks: take off its softmax"
        )


def _zero_share(network: Classifier, images: Tensor, objective: Objective) -> float:
    """The share of images (B, channels, H, W) on which no pixel has a ∇ objective to follow.

    Where it is NaN, its sign is 0, and an attack stands still.
    """
    inputs = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        total = objective(network(inputs)).sum()
        if not total.requires_grad:
            raise FerdError(
                "the network's logits have no gradient by its images, which attacks follow: it rounds "
                "them, or detaches them on the way; take that out"
            )
        (gradient,) = torch.autograd.grad(total, inputs)
    still = (gradient == 0) | gradient.isnan()
    return still.flatten(1).all(1).double().mean().item()


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
