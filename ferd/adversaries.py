"""The examples that the student is trained against, as pieces of a method."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ferd.attacks import entropy, gaussian_start, pgd, utae
from ferd.augmentation import augment_strongly
from ferd.config import Method, ThreatModel
from ferd.errors import FerdError, no_such
from ferd.models.classifier import Classifier

HIGH_ENTROPY_STEP = 0.03
OUTCOME_MEMORY = 0.99  # how much of the counted outcomes is kept a batch


class Adversary(ABC):
    """Makes adversarial images from a batch, and may learn from how the student took them.

    A GPU records both methods with the training step (``ferd.cuda_graphs``): what they learn they change in
    place, on the device; an attribute that is set anew there stays as it was for the rest of the round.

    Attributes:
        recordable: False for one that branches on a tensor's value or copies it to the host.
        needs_teacher: False for one that does not look at the teacher's softmax.
    """

    recordable = True
    needs_teacher = True

    @abstractmethod
    def attack(
        self,
        attacked: Classifier,
        inputs: Tensor,
        labels: Tensor,
        teacher_probs: Tensor,
        rng: torch.Generator,
    ) -> Tensor:
        """Images of the shape of ``inputs`` (B, channels, H, W) in [0, 1]; labels (B,).

        Args:
            attacked: a folded twin of the network that ``utae.model`` names, perhaps in bfloat16.
            teacher_probs: the teacher's softmax (B, C) on ``inputs``; (0, C) where nothing needs it.
        """

    def observe(self, labels: Tensor, adv_logits: Tensor) -> None:  # noqa: B027
        """What the student made of the attack; labels (B,), logits (B, C)."""

    def state_dict(self) -> dict[str, Tensor]:
        """What later batches depend on."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Go on where ``state_dict`` was taken."""


class UtaeAdversary(Adversary):
    """Eq. 10 with a constant γ; γ = 0 is the KL attack of TRADES and RSLAD."""

    def __init__(self, gamma: float, threat: ThreatModel) -> None:
        self.gamma, self.threat = gamma, threat

    def attack(
        self,
        attacked: Classifier,
        inputs: Tensor,
        labels: Tensor,
        teacher_probs: Tensor,
        rng: torch.Generator,
    ) -> Tensor:
        """Uniform-target adversarial examples."""
        return utae(attacked, inputs, teacher_probs, self.gamma, self.threat, rng)


class AdaptiveUtaeAdversary(Adversary):
    """γ_y = γ·(1 − H(outcomes of class y)/log(C − 1)): strongest where attacks end in few classes.

    The outcomes of class y are the other classes that the student, attacked, takes its images for: a
    running count that starts even (γ_y = 0) and forgets 1 % a batch.

    Raises:
        FerdError: there are two classes: attacks on one end in the other alone.
    """

    def __init__(self, gamma: float, threat: ThreatModel, classes: int, device: torch.device) -> None:
        if classes < 3:
            raise FerdError(f"adversary adaptive-utae needs 3 classes, not {classes}; take utae")
        self.gamma, self.threat = gamma, threat
        self.outcomes = 1 - torch.eye(classes, device=device)

    def gammas(self) -> Tensor:
        """γ of each class (C,)."""
        shares = self.outcomes / self.outcomes.sum(1, keepdim=True)
        outcome_entropy = -torch.xlogy(shares, shares).sum(1)
        return self.gamma * (1 - outcome_entropy / math.log(len(shares) - 1)).clamp(0, 1)

    def attack(
        self,
        attacked: Classifier,
        inputs: Tensor,
        labels: Tensor,
        teacher_probs: Tensor,
        rng: torch.Generator,
    ) -> Tensor:
        """Uniform-target adversarial examples, each with the γ of its class."""
        return utae(attacked, inputs, teacher_probs, self.gammas()[labels], self.threat, rng)

    def observe(self, labels: Tensor, adv_logits: Tensor) -> None:
        """Count where the attacked images of each class ended, other than in their own."""
        predicted = adv_logits.argmax(1)
        fooled = (predicted != labels).to(self.outcomes.dtype)
        self.outcomes *= OUTCOME_MEMORY
        self.outcomes.index_put_((labels, predicted), fooled, accumulate=True)

    def state_dict(self) -> dict[str, Tensor]:
        """The outcomes counted so far."""
        return {"outcomes": self.outcomes}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on counting."""
        self.outcomes.copy_(state["outcomes"])


class HighEntropyAdversary(Adversary):
    """DFHL-RS (Yuan et al. 2024): steps of 0.03 up the attacked network's entropy, within [0, 1] alone.

    From a strongly augmented image + 0.001·N(0, 1).
    """

    needs_teacher = False

    def __init__(self, steps: int) -> None:
        self.threat = ThreatModel(norm="linf", epsilon=1.0, step_size=HIGH_ENTROPY_STEP, steps=steps)

    def attack(
        self,
        attacked: Classifier,
        inputs: Tensor,
        labels: Tensor,
        teacher_probs: Tensor,
        rng: torch.Generator,
    ) -> Tensor:
        """High-entropy examples."""
        inputs = augment_strongly(inputs, rng)
        start = gaussian_start(inputs, self.threat.epsilon, rng)
        return pgd(attacked, inputs, entropy, self.threat, start)


def build_adversary(method: Method, threat: ThreatModel, classes: int, device: torch.device) -> Adversary:
    """The adversary that a method names; ``threat`` holds its number of steps."""
    match method.adversary:
        case "utae":
            return UtaeAdversary(method.utae.gamma, threat)
        case "adaptive-utae":
            return AdaptiveUtaeAdversary(method.utae.gamma, threat, classes, device)
        case "high-entropy":
            return HighEntropyAdversary(threat.steps)
    return no_such("adversary", method.adversary)
