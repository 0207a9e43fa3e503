"""The verdict of every attack on every test image, and the figures that derive from them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ferd.attacks import cross_entropy, fgsm, negative_margin, pgd, random_start
from ferd.config import Evaluation as Settings
from ferd.config import ThreatModel
from ferd.datasets import Images, first_per_class
from ferd.errors import FerdError
from ferd.fairness import nsd, per_class_accuracy, worst
from ferd.models.classifier import Classifier, fast_layout
from ferd.models.folding import Folded
from ferd.pixels import to_float

PGD_STEPS = 20
CW_STEPS = 30


class Evaluation:
    """Correctness of each example under each attack; resumable between two batches.

    Attacks run on a twin with BatchNorm folded in; every verdict is the network's own.
    Every batch has its own random numbers, so the order of work does not change a verdict.

    Attributes:
        verdicts: for each attack whether each of its images was still classified correctly, so
            far; the images are the first of every class, in order.
    """

    def __init__(
        self,
        network: Classifier,
        data: Images,
        settings: Settings,
        threat: ThreatModel,
        seed: int,
        device: torch.device,
    ) -> None:
        self.network = fast_layout(network, device).eval()
        self.attacked = Folded(self.network).network
        self.settings, self.threat, self.seed, self.device = settings, threat, seed, device
        self.subsets: dict[str, Images] = {
            attack: _subset(data, number, network.classes) for attack, number in settings.attacks.items()
        }
        self.verdicts: dict[str, Tensor] = {
            attack: torch.empty(0, dtype=torch.bool) for attack in self.subsets
        }

    def batches(self) -> Iterator[tuple[str, int, int]]:
        """Judge what is left; after each batch (attack, images judged, images in all)."""
        for attack, subset in self.subsets.items():
            total = len(subset.labels)
            while (done := len(self.verdicts[attack])) < total:
                rows = slice(done, done + self.settings.batch_size)
                images = to_float(subset.images[rows].to(self.device))
                labels = subset.labels[rows].to(self.device)
                correct = self._judge(attack, images, labels, batch_seed=self.seed + done)
                self.verdicts[attack] = torch.cat([self.verdicts[attack], correct.cpu()])
                yield attack, done + len(labels), total

    def figures(self) -> dict[str, dict[str, Any]]:
        """For each attack: n, average, worst, nsd, per_class (fractions 0-1)."""
        return {
            attack: self._summary(correct, self.subsets[attack].labels)
            for attack, correct in self.verdicts.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The verdicts so far."""
        return dict(self.verdicts)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.verdicts = dict(state)

    def _summary(self, correct: Tensor, labels: Tensor) -> dict[str, Any]:
        per_class = per_class_accuracy(correct, labels, self.network.classes)
        return {
            "n": len(labels),
            "average": correct.double().mean().item(),
            "worst": worst(per_class),
            "nsd": nsd(per_class),
            "per_class": per_class.tolist(),
        }

    def _judge(self, attack: str, images: Tensor, labels: Tensor, batch_seed: int) -> Tensor:
        adv_images = self._attack(attack, images, labels, batch_seed)
        with torch.no_grad():
            predicted: Tensor = self.network(adv_images).argmax(1)
        return predicted == labels

    def _attack(self, attack: str, images: Tensor, labels: Tensor, batch_seed: int) -> Tensor:
        if attack == "clean":
            return images
        if attack == "fgsm":
            return fgsm(self.attacked, images, labels, self.threat.epsilon)
        if attack == "autoattack":
            return _autoattack(self.attacked, images, labels, self.threat.epsilon, batch_seed)
        rng = torch.Generator(self.device).manual_seed(batch_seed)
        start = random_start(images, self.threat.epsilon, rng)
        if attack == "pgd20":
            threat = self.threat.with_steps(PGD_STEPS)
            return pgd(self.attacked, images, cross_entropy(labels), threat, start)
        threat = self.threat.with_steps(CW_STEPS)
        return pgd(self.attacked, images, negative_margin(labels), threat, start)


def _subset(data: Images, number: int | str, classes: int) -> Images:
    """All images, or the first ``number``/C of each class."""
    if number == "all":
        return data
    if not isinstance(number, int) or number % classes:
        raise FerdError(
            f"evaluation.attacks: {number} images cannot be split evenly over {classes} classes; "
            f"use a multiple of {classes}, or all"
        )
    rows = first_per_class(data.labels, 0, number // classes)
    return Images(data.images[rows], data.labels[rows])


def _autoattack(network: Classifier, images: Tensor, labels: Tensor, epsilon: float, seed: int) -> Tensor:
    """AutoAttack, standard version (Croce and Hein 2020), by the authors' own package."""
    from pyautoattack import AutoAttack

    with torch.random.fork_rng(devices=[]):
        attack = AutoAttack(
            network,
            norm="Linf",
            eps=epsilon,
            seed=seed,
            version="standard",
            device=images.device,
        )
        adv_images, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    return torch.as_tensor(adv_images)
