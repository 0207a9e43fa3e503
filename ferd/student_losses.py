"""What the student is trained on, as pieces of a method: Eq. 12 and its rivals.

Each gives a clean and an adversarial loss, a mean over the batch; the loop weighs them. What is
learned on the way (class priors, weights, temperatures) is part of the resumable state.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ferd.config import Method
from ferd.errors import no_such
from ferd.losses import ClassPrior, ikl, kl_divergence, soft_cross_entropy


@dataclass(frozen=True)
class Batch:
    """Images (B, channels, H, W) in [0, 1], clean and adversarial, with labels (B,) and logits (B, C).

    Logits are computed when they are first asked for: a loss pays for those that it looks at.

    Args:
        teacher, student: images -> logits; the student's with a gradient, in training mode.
        points_right: (B,), for a loss that needs it: how many of the points x_0 ... x_{T−1} of its attack the
            attacked network got right.
    """

    inputs: Tensor
    adv_inputs: Tensor
    labels: Tensor
    teacher: Callable[[Tensor], Tensor]
    student: Callable[[Tensor], Tensor]
    points_right: Tensor | None = None

    @cached_property
    def teacher_logits(self) -> Tensor:
        """The teacher's on clean images."""
        return self.teacher(self.inputs)

    @cached_property
    def teacher_adv_logits(self) -> Tensor:
        """The teacher's on adversarial images."""
        return self.teacher(self.adv_inputs)

    @cached_property
    def student_logits(self) -> Tensor:
        """The student's on clean images."""
        return self.student(self.inputs)

    @cached_property
    def student_adv_logits(self) -> Tensor:
        """The student's on adversarial images."""
        return self.student(self.adv_inputs)


class StudentLoss(ABC):
    """A clean and an adversarial loss a batch, with what it learns over batches and rounds.

    A GPU records ``losses`` with the training step (``ferd.cuda_graphs``): what it learns it changes in
    place, on the device; an attribute that is set anew there stays as it was for the rest of the round.

    Attributes:
        recordable: False for one that branches on a tensor's value or copies it to the host.
        adversarial_weight: of the adversarial loss, where the method's source fixes it; else the schedule's.
        needs_points_right: whether it looks at how the attack went.
    """

    recordable = True
    adversarial_weight: float | None = None
    needs_points_right = False

    @abstractmethod
    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(clean, adversarial), both ()."""

    def attack_targets(self, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """What the adversary gets as the teacher's softmax (B, C), of its logits (B, C); labels (B,)."""
        return teacher_logits.softmax(1)

    def end_round(self) -> None:  # noqa: B027
        """Adjust to what the round's batches have shown."""

    def state_dict(self) -> dict[str, Tensor]:
        """What later batches depend on."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Go on where ``state_dict`` was taken."""


def fixes_its_weight(method: Method) -> bool:
    """Whether no ``adversarial_weight`` that is set changes the method."""
    loss = build_student_loss(method, 2, torch.device("cpu"))
    return loss.adversarial_weight is not None or isinstance(loss, HardLabel)  # whose parts are equal


class Ikl(StudentLoss):
    """FERD: IKL(f^T(x), f^S(x)) and IKL(f^T(x), f^S(x')), weighted by the class prior (Eq. 11-12)."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.prior = ClassPrior(classes, device)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The prior takes in the batch first."""
        self.prior.update(batch.teacher_logits.softmax(1), batch.labels)
        weights = self.prior.weights(batch.labels)
        clean = ikl(batch.teacher_logits, batch.student_logits, weights)
        adversarial = ikl(batch.teacher_logits, batch.student_adv_logits, weights)
        return clean.mean(), adversarial.mean()

    def state_dict(self) -> dict[str, Tensor]:
        """The prior's sums and counts."""
        return {"sums": self.prior.sums, "counts": self.prior.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on averaging."""
        self.prior.sums.copy_(state["sums"])
        self.prior.counts.copy_(state["counts"])


class SoftCrossEntropy(StudentLoss):
    """The released code's loss: with its one-hot prior wMSE is 0, soft cross-entropy is left."""

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """−Σ σ(o_T) log σ(o_S), clean and adversarial."""
        targets = batch.teacher_logits.softmax(1)
        clean = soft_cross_entropy(targets, batch.student_logits)
        return clean.mean(), soft_cross_entropy(targets, batch.student_adv_logits).mean()


class Rslad(StudentLoss):
    """RSLAD (Zi et al. 2021): ⅙ KL(T(x) ‖ S(x)) + ⅚ KL(T(x) ‖ S(x'))."""

    adversarial_weight = 5 / 6

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's soft labels on both sides."""
        targets = batch.teacher_logits.softmax(1)
        clean = kl_divergence(targets, batch.student_logits)
        return clean.mean(), kl_divergence(targets, batch.student_adv_logits).mean()


class FairRslad(StudentLoss):
    """Fair-RSLAD (Yue et al. 2023): RSLAD of which both parts weigh class c by κ_c^−2.

    κ_c is the mean over a round's images of class c of how many points x_0 ... x_{T−1} of their attack the
    student got right. The weights have mean 1 before they are clamped to [5/6, 5/2]. As its authors' code
    counts (github.com/NISP-official/Fair-ARD); its paper: the steps until the first fault.
    """

    adversarial_weight = 5 / 6
    needs_points_right = True
    POWER, LOWEST, HIGHEST = 2.0, 5 / 6, 5 / 2
    LEAST_KAPPA = 1e-6  # of a class with no point right: all the weight that the bounds allow

    def __init__(self, classes: int, device: torch.device) -> None:
        self.kappa = torch.full((classes,), torch.nan, device=device)
        self._right = torch.zeros(classes, device=device)
        self._counts = torch.zeros(classes, device=device)

    def weights(self) -> Tensor:
        """Weight of each class (C,); one never seen counts with the mean κ, and before any all are 1."""
        mean = self.kappa.nanmean().nan_to_num(1.0)
        kappa = torch.where(self.kappa.isnan(), mean, self.kappa).clamp(min=self.LEAST_KAPPA)
        raw = kappa.pow(-self.POWER)
        return (raw / raw.mean()).clamp(self.LOWEST, self.HIGHEST)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """As RSLAD, weighted by class."""
        assert batch.points_right is not None
        self._right.index_add_(0, batch.labels, batch.points_right.to(self._right.dtype))
        self._counts.index_add_(0, batch.labels, torch.ones_like(batch.labels, dtype=self._counts.dtype))
        targets, weights = batch.teacher_logits.softmax(1), self.weights()[batch.labels]
        clean = kl_divergence(targets, batch.student_logits)
        adversarial = kl_divergence(targets, batch.student_adv_logits)
        return (weights * clean).mean(), (weights * adversarial).mean()

    def end_round(self) -> None:
        """Take over κ of the round; a class that was not drawn keeps its own."""
        self.kappa.copy_(torch.where(self._counts > 0, self._right / self._counts, self.kappa))
        self._right.zero_()
        self._counts.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """κ of each class."""
        return {"kappa": self.kappa}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with these weights."""
        self.kappa.copy_(state["kappa"])
        self._right.zero_()
        self._counts.zero_()


class Absld(StudentLoss):
    """ABSLD (Zhao et al. 2024): RSLAD with a temperature of the soft labels a class.

    After each round τ_c −= 0.1·(R_c − R̄)/max|R − R̄|, clamped to [0.5, 5]: R_c is the student's mean
    cross-entropy on class c over the round; a class at risk gets sharper labels. Clean and adversarial
    temperatures are kept apart; the attack is led away from the adversarial part's labels.
    """

    adversarial_weight = 5 / 6
    RATE, LOWEST, HIGHEST = 0.1, 0.5, 5.0

    def __init__(self, classes: int, device: torch.device) -> None:
        self.temperatures = torch.ones(2, classes, device=device)
        self._risks = torch.zeros(2, classes, device=device)
        self._counts = torch.zeros(classes, device=device)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """KL(σ(o_T/τ_y) ‖ σ(o_S)), clean and adversarial."""
        self._counts.index_add_(0, batch.labels, torch.ones_like(batch.labels, dtype=self._counts.dtype))
        losses = []
        for part, logits in enumerate((batch.student_logits, batch.student_adv_logits)):
            risk = F.cross_entropy(logits.detach(), batch.labels, reduction="none")
            self._risks[part].index_add_(0, batch.labels, risk)
            targets = self._targets(part, batch.teacher_logits, batch.labels)
            losses.append(kl_divergence(targets, logits).mean())
        return losses[0], losses[1]

    def attack_targets(self, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """σ(o_T/τ_y), by the adversarial temperatures."""
        return self._targets(1, teacher_logits, labels)

    def _targets(self, part: int, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        return (teacher_logits / self.temperatures[part, labels].unsqueeze(1)).softmax(1)

    def end_round(self) -> None:
        """One step of the temperatures; classes that were not drawn keep theirs."""
        seen = self._counts > 0
        if seen.any():
            risk = self._risks[:, seen] / self._counts[seen]
            gap = risk - risk.mean(1, keepdim=True)
            step = self.RATE * gap / gap.abs().amax(1, keepdim=True).clamp(min=1e-12)
            self.temperatures[:, seen] = (self.temperatures[:, seen] - step).clamp(self.LOWEST, self.HIGHEST)
        self._risks.zero_()
        self._counts.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The temperatures (2, C)."""
        return {"temperatures": self.temperatures}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with these temperatures."""
        self.temperatures.copy_(state["temperatures"])
        self._risks.zero_()
        self._counts.zero_()


class HardLabel(StudentLoss):
    """DFHL-RS (Yuan et al. 2024): CE(f^S(x'), argmax f^T(x')), its only term, given as both parts."""

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Any weighting of the two equal parts is the one term."""
        loss = F.cross_entropy(batch.student_adv_logits, batch.teacher_adv_logits.argmax(1))
        return loss, loss


def build_student_loss(method: Method, classes: int, device: torch.device) -> StudentLoss:
    """The student loss that a method names."""
    match method.student_loss:
        case "ikl":
            return Ikl(classes, device)
        case "soft-cross-entropy":
            return SoftCrossEntropy()
        case "rslad":
            return Rslad()
        case "fair-rslad":
            return FairRslad(classes, device)
        case "absld":
            return Absld(classes, device)
        case "hard-label":
            return HardLabel()
    return no_such("student_loss", method.student_loss)
