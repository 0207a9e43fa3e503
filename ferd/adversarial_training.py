"""Teachers trained to be robust: PGD-AT (Madry et al. 2018) and TRADES (Zhang et al. 2019)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ferd.attacks import cross_entropy, pgd, random_start, utae
from ferd.augmentation import augment
from ferd.config import Augmentation, Teacher, ThreatModel
from ferd.datasets import Images
from ferd.errors import FerdError
from ferd.models.classifier import Classifier, diverged, fast_layout
from ferd.models.folding import Folded
from ferd.pixels import to_float
from ferd.schedule import set_cosine_rate


@dataclass(frozen=True)
class EpochRecord:
    """One epoch's means; the accuracy is on the adversarial training batches."""

    epoch: int
    loss: float
    robust_accuracy: float
    learning_rate: float


def trades_loss(clean_logits: Tensor, adv_logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """CE(f(x), y) + β·KL(σ(f(x)) ‖ σ(f(x'))), the mean over the batch; both keep their gradients."""
    clean, adv = clean_logits.log_softmax(1), adv_logits.log_softmax(1)
    robust = (clean.exp() * (clean - adv)).sum(1).mean()
    return F.cross_entropy(clean_logits, labels) + beta * robust


class AdversarialTraining:
    """SGD with momentum 0.9 on adversarial examples of the training images; cosine to 0.

    Args:
        network: trained in place, on ``device``.
        data: training images.
        threat: the ball; its step size and steps are replaced by the teacher's own.
    """

    def __init__(
        self,
        network: Classifier,
        data: Images,
        settings: Teacher,
        threat: ThreatModel,
        augmentation: Augmentation,
        seed: int,
        device: torch.device,
    ) -> None:
        self.network = fast_layout(network, device)
        self._twin = Folded(self.network)
        self.settings = settings
        self.augmentation = augmentation
        self.threat = threat.model_copy(
            update={"step_size": settings.attack_step_size, "steps": settings.attack_steps}
        )
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        self.rng = torch.Generator(device).manual_seed(seed)
        self.optimiser = torch.optim.SGD(
            network.parameters(),
            settings.learning_rate,
            momentum=0.9,
            weight_decay=settings.weight_decay,
        )
        self.epoch = 0

    def epochs(self) -> Iterator[EpochRecord]:
        """Train to the end, one record an epoch; the state may be saved between two."""
        while self.epoch < self.settings.epochs:
            record = self._train_epoch()
            if not math.isfinite(record.loss) or diverged(self.network, to_float(self.images[:2])):
                raise FerdError(
                    f"teacher: the loss is {record.loss} in epoch {record.epoch}; lower teacher.learning_rate"
                )
            self.epoch += 1
            yield record

    def state_dict(self) -> dict[str, Any]:
        """All that the remaining epochs depend on."""
        return {
            "epoch": self.epoch,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rng": self.rng.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.epoch = state["epoch"]
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.rng.set_state(state["rng"])

    def _train_epoch(self) -> EpochRecord:
        device, size = self.images.device, self.settings.batch_size
        order = torch.randperm(len(self.images), generator=self.rng, device=device)
        batches = [rows for rows in order.split(size) if len(rows) > 1]
        sums = torch.zeros(2, device=device)
        rate = self.settings.learning_rate
        for number, rows in enumerate(batches):
            done = (self.epoch + number / len(batches)) / self.settings.epochs
            rate = set_cosine_rate(self.optimiser, self.settings.learning_rate, done)
            sums += self._train_batch(to_float(self.images[rows]), self.labels[rows]) / len(batches)
        loss, robust = sums.tolist()
        return EpochRecord(self.epoch + 1, loss, robust, rate)

    def _train_batch(self, images: Tensor, labels: Tensor) -> Tensor:
        inputs = augment(images, self.augmentation, self.rng)
        adv_inputs = self._attack(inputs, labels)
        self.network.train()
        adv_logits = self.network(adv_inputs)
        if self.settings.method == "trades":
            loss = trades_loss(self.network(inputs), adv_logits, labels, self.settings.beta)
        else:
            loss = F.cross_entropy(adv_logits, labels)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        robust = (adv_logits.argmax(1) == labels).float().mean()
        return torch.stack([loss.detach(), robust])

    def _attack(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self._twin.refresh()
        attacked = self._twin.network
        if self.settings.method == "trades":
            with torch.no_grad():
                clean_probs = attacked(inputs).softmax(1)
            return utae(attacked, inputs, clean_probs, 0.0, self.threat, self.rng)
        start = random_start(inputs, self.threat.epsilon, self.rng)
        return pgd(attacked, inputs, cross_entropy(labels), self.threat, start)
