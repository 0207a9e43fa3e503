"""Label samplers: which classes the next round's images are asked for."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ferd.augmentation import augment
from ferd.config import Augmentation, DistillationSettings, Method, ThreatModel
from ferd.errors import no_such
from ferd.models.classifier import Classifier
from ferd.reweighting import adversarial_margins, proportions, released_proportions, update_difficulty

MIXED_UNIFORM_SHARE = 0.5


class Sampler(ABC):
    """Class proportions of the next round, from the adversarial margins of the rounds before.

    Attributes:
        difficulty: D (C,); NaN for classes never seen.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.difficulty = torch.full((classes,), math.nan, device=device)

    @abstractmethod
    def proportions(self) -> Tensor:
        """p (C,), sums to 1."""

    @abstractmethod
    def observe(
        self, teacher: Classifier, student: Classifier, images: Tensor, labels: Tensor, rng: torch.Generator
    ) -> None:
        """Take in a round's images (B, channels, H, W) in [0, 1] and labels (B,), before the student's steps.

        Args:
            teacher, student: twins to attack; the student as the round before left it.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What later rounds depend on."""
        return {"difficulty": self.difficulty}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.difficulty.copy_(state["difficulty"])


class UniformSampler(Sampler):
    """No reweighting: every class as often."""

    def proportions(self) -> Tensor:
        """1/C each."""
        return torch.full_like(self.difficulty, 1 / len(self.difficulty))

    def observe(
        self, teacher: Classifier, student: Classifier, images: Tensor, labels: Tensor, rng: torch.Generator
    ) -> None:
        """Nothing is learned from margins."""


class MarginSampler(Sampler):
    """Eq. 1-2: p = σ(D) over a floor; ``uniform_share`` of it is spread evenly, for the average's sake."""

    def __init__(
        self,
        classes: int,
        device: torch.device,
        threat: ThreatModel,
        floor: float,
        uniform_share: float = 0.0,
    ) -> None:
        super().__init__(classes, device)
        self.threat = threat
        self.floor = floor + uniform_share * (1 / classes - floor)

    def proportions(self) -> Tensor:
        """floor + (1 − C·floor)·σ(D)."""
        return proportions(self.difficulty, self.floor)

    def observe(
        self, teacher: Classifier, student: Classifier, images: Tensor, labels: Tensor, rng: torch.Generator
    ) -> None:
        """D_c of the classes in the batch, under attacks on the teacher; the others keep theirs."""
        margin = adversarial_margins(teacher, images, labels, self.threat, rng)
        self.difficulty = update_difficulty(self.difficulty, margin, labels)


class ReleasedSampler(Sampler):
    """As the released code: D of one augmented batch alone, 0 for absent classes, rescaled.

    Of the round's kept images; that code takes those of the generator's last step.
    """

    def __init__(
        self, classes: int, device: torch.device, threat: ThreatModel, augmentation: Augmentation
    ) -> None:
        super().__init__(classes, device)
        self.threat, self.augmentation = threat, augmentation

    def proportions(self) -> Tensor:
        """D mapped linearly to [0.05, 0.2], divided by its sum."""
        return released_proportions(self.difficulty)

    def observe(
        self, teacher: Classifier, student: Classifier, images: Tensor, labels: Tensor, rng: torch.Generator
    ) -> None:
        """D of this batch; what was known before is forgotten."""
        inputs = augment(images, self.augmentation, rng)
        margin = adversarial_margins(teacher, inputs, labels, self.threat, rng)
        self.difficulty = update_difficulty(torch.zeros_like(self.difficulty), margin, labels)


def build_sampler(
    method: Method,
    schedule: DistillationSettings,
    threat: ThreatModel,
    augmentation: Augmentation,
    classes: int,
    device: torch.device,
) -> Sampler:
    """The sampler that a method names."""
    floor = schedule.proportion_floor
    match method.sampler:
        case "uniform":
            return UniformSampler(classes, device)
        case "margin":
            return MarginSampler(classes, device, threat, floor)
        case "mixed":
            return MarginSampler(classes, device, threat, floor, MIXED_UNIFORM_SHARE)
        case "released":
            return ReleasedSampler(classes, device, threat, augmentation)
    return no_such("sampler", method.sampler)
