"""An adversary that picks the class an image is turned into, and so finds the weak classes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ferd.attacks import pgd, random_start, toward
from ferd.config import ThreatModel
from ferd.datasets import Images
from ferd.fairness import nsd, worst
from ferd.models.classifier import Classifier, fast_layout
from ferd.models.folding import Folded
from ferd.pixels import to_float
from ferd.randomness import stream

MOST_TARGETS = 9  # an image; all other classes where C <= 10
PAIRS = 10  # of the matrix, that are listed


class AdaptiveAdversary:
    """Targeted PGD of each image toward each of its targets; resumable between two batches.

    An image's targets are the min(C, 10) − 1 classes, other than its own, of the highest clean logits:
    all of them where C <= 10. Attacks run on a twin with BatchNorm folded in; every verdict is the
    network's own. Every batch has its own random numbers.

    Args:
        data: the images that are attacked, of all classes or of some.
        threat: the ball, and the steps of each attack.

    Attributes:
        targets: (n, T) the targets of the images attacked so far, most likely first.
        outcomes: (n, T) the class that each attack ended in.
    """

    def __init__(
        self,
        network: Classifier,
        data: Images,
        threat: ThreatModel,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.network = fast_layout(network, device).eval()
        self.attacked = Folded(self.network).network
        self.data, self.threat, self.batch_size = data, threat, batch_size
        self.seed, self.device = seed, device
        self.targets_per_image = min(network.classes - 1, MOST_TARGETS)
        self.targets = torch.empty((0, self.targets_per_image), dtype=torch.int64)
        self.outcomes = self.targets

    def batches(self) -> Iterator[tuple[int, int]]:
        """Attack what is left; after each batch (images attacked, images in all)."""
        total = len(self.data.labels)
        while (done := len(self.outcomes)) < total:
            rows = slice(done, done + self.batch_size)
            images = to_float(self.data.images[rows].to(self.device))
            targets = self._likeliest_others(images, self.data.labels[rows].to(self.device))
            rng = stream(self.seed, "adaptive-adversary", done, device=self.device)
            outcomes = self._attack(images, targets, rng)
            self.targets = torch.cat([self.targets, targets.cpu()])
            self.outcomes = torch.cat([self.outcomes, outcomes.cpu()])
            yield len(self.outcomes), total

    def source(self, label: int) -> dict[str, Any]:
        """How the images of a class fare.

        Returns:
            ``success``: for each target t the share of the class's images that ended as t when attacked
            toward t, None where none was; ``best_target`` and ``best_success``: its largest;
            ``union_accuracy``: the share that every attack left correct, whatever its target.
        """
        members = self.data.labels == label
        targets, outcomes = self.targets[members], self.outcomes[members]
        classes = self.network.classes
        tried = torch.bincount(targets.flatten(), minlength=classes) > 0
        reached = torch.bincount(targets[outcomes == targets], minlength=classes).double() / len(targets)
        best = int(reached.where(tried, torch.tensor(-1.0)).argmax())
        return {
            "success": [float(share) if some else None for share, some in zip(reached, tried, strict=True)],
            "best_target": best,
            "best_success": reached[best].item(),
            "union_accuracy": (outcomes == label).all(1).double().mean().item(),
        }

    def figures(self) -> dict[str, Any]:
        """The (source × target) matrix, what stands out in it, and the union accuracy over classes."""
        sources = [self.source(label) for label in range(self.network.classes)]
        success = [source["success"] for source in sources]
        union = torch.tensor([source["union_accuracy"] for source in sources], dtype=torch.float64)
        return {
            "n": len(self.data.labels),
            "targets_per_image": self.targets_per_image,
            "steps": self.threat.steps,
            "success": success,
            "worst_pairs": worst_pairs(success),
            "best_targets": [
                {"target": source["best_target"], "success": source["best_success"]} for source in sources
            ],
            "union": {
                "average": union.mean().item(),
                "worst": worst(union),
                "nsd": nsd(union),
                "per_class": union.tolist(),
            },
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The outcomes so far."""
        return {"targets": self.targets, "outcomes": self.outcomes}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.targets, self.outcomes = state["targets"], state["outcomes"]

    @torch.no_grad()
    def _likeliest_others(self, images: Tensor, labels: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
        return others.topk(self.targets_per_image, dim=1).indices

    def _attack(self, images: Tensor, targets: Tensor, rng: torch.Generator) -> Tensor:
        outcomes = []
        for target in targets.T:
            start = random_start(images, self.threat.epsilon, rng)
            adv_images = pgd(self.attacked, images, toward(target), self.threat, start)
            with torch.no_grad():
                outcomes.append(self.network(adv_images).argmax(1))
        return torch.stack(outcomes, 1)


def worst_pairs(success: list[list[float | None]]) -> list[dict[str, Any]]:
    """The pairs of classes of the largest success, at most ``PAIRS`` of them, largest first."""
    pairs = [
        {"source": source, "target": target, "success": share}
        for source, row in enumerate(success)
        for target, share in enumerate(row)
        if share
    ]
    return sorted(pairs, key=lambda pair: -pair["success"])[:PAIRS]


def weakest(per_class: list[float]) -> list[int]:
    """The max(1, C/10) classes of the lowest accuracy, lowest first."""
    order = sorted(range(len(per_class)), key=per_class.__getitem__)
    return order[: max(1, len(per_class) // 10)]
